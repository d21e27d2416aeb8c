"""Texts as tokens, and the layouts that tasks read."""
