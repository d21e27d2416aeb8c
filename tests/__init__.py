"""The tests: one folder per package, and slow plain twins of fast code in `oracle`."""
