"""The outside: command line, presets, run files and their pictures, benchmarks."""
