"""Tests of `methods`, one file per method."""
