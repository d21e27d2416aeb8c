"""Drills: real runs that are really disturbed, one command each; docs/reliability.md has what they showed."""
