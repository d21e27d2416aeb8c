"""The one error that data and partitions raise for what a user gave."""


class DataError(ValueError):
    """A data set, partition or argument that cannot be used.

    Its message is one line: what was given, what was expected, what to do.
    """
