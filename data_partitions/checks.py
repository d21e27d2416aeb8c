"""Checks of single values that a user gave, shared by data sets and partitioners."""

from __future__ import annotations

from numbers import Integral

from data_partitions.errors import DataError


def require_whole(key: str, value: int, least: int, example: int) -> int:
    """Checks a whole number.

    Args:
        key: what the user calls it, such as "partition.clients" or "data.max_length".
        value: what the user gave.
        least: the smallest that is allowed.
        example: one that would do, for the message.

    Returns:
        The same as an int of at least `least`.

    Raises:
        DataError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise DataError(f"{key} is {value!r}, expected a whole number of at least {least}: give e.g. {example}")
    return int(value)
