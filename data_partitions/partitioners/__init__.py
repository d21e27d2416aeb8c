"""Rules that deal examples to clients: one file each."""
