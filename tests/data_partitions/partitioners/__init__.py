"""Tests of the data sets, the partitions and the embedded backbone."""
