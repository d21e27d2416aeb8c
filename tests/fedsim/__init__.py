"""Tests of `fedsim`, one file per module."""
