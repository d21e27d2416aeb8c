"""Columns, images and posts as they lie in files or on the hub, and what is kept of them for the next start."""
