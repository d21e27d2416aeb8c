"""Slow and plain twins of the fast code, to compare it with."""
