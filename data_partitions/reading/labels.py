"""Labels and users in columns: numbers or names, one rule for data sets of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_partitions.errors import DataError
from data_partitions.reading.columns import require_label_names

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

MOST_LABELS = 100_000
"""Integers from here on are no numbers of labels but something else, such as an id."""


def names_or_integers(
    cells: pyarrow.ChunkedArray, split: str, column: str, key: str, names: bool = False
) -> np.ndarray:
    """Reads a column of names or of integers; labels and users are either.

    Args:
        cells: without missing values.
        split: the split's name, for errors.
        column: the column's name, for errors.
        key: by which key the user names another column, for errors.
        names: whether only names will do.

    Returns:
        (N,), of one of the two.

    Raises:
        DataError: if the column holds anything else, or an empty name.
    """
    from pyarrow import types

    is_names = types.is_string(cells.type) or types.is_large_string(cells.type)
    if not is_names and (names or not types.is_integer(cells.type)):
        raise DataError(
            f"{split} column {column} holds {cells.type}, expected names{'' if names else ' or integers'}: write them"
            f" as such, or name another column with --{key}"
        )
    values = cells.to_pylist()
    if is_names and "" in values:
        raise DataError(f"{split} column {column} is empty at row {values.index('')}, expected a name: fill it")
    return np.array(values, dtype=None if values else "U1" if is_names else "int64")


def numbers_of(found: Dataset, split: str, column: str, labels: int, advice: str = "correct it") -> np.ndarray:
    """The numbers of labels in a column.

    Args:
        found: what `read_rows` returned.
        split: the split's name, for errors.
        column: the column's name.
        labels: how many labels there are.
        advice: what to do about a number outside, for errors.

    Returns:
        int64 (N,), 0 to labels - 1.

    Raises:
        DataError: if the column holds something else.
    """
    numbers: np.ndarray = found.with_format("arrow")[:][column].to_numpy()
    if not np.issubdtype(numbers.dtype, np.integer):
        raise DataError(
            f"{split} column {column} holds {numbers.dtype}, expected integers 0 to {labels - 1}: number the labels"
        )
    outside = np.flatnonzero((numbers < 0) | (numbers >= labels))
    if len(outside):
        row = outside[0]
        raise DataError(
            f"{split} label {numbers[row]} at row {row} is outside the expected 0 to {labels - 1}: {advice}"
        )
    return numbers.astype(np.int64)


def number_labels(train: Dataset, column: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Numbers the labels of the training split.

    Args:
        train: what `load_columns` returned, at least one row.
        column: the labels' column, named by data.label_column.

    Returns:
        The names of the labels, and the number of each row's, int64 (N,).

    Raises:
        DataError: for a number outside the names that the data declare, or outside 0 to 99,999 where they declare none;
            or what is neither an integer nor a name.
    """
    declared = getattr(train.features[column], "names", None)
    if declared is not None:
        return tuple(declared), numbers_of(train, "train", column, len(declared))
    values = _labels(train, "train", column)
    if values.dtype.kind == "U":
        known, numbers = np.unique(values, return_inverse=True)
        return tuple(known.tolist()), numbers.astype(np.int64)
    numbers = numbers_of(train, "train", column, MOST_LABELS)
    return tuple(str(number) for number in range(int(numbers.max()) + 1)), numbers


def number_alike(train: Dataset, test: Dataset, split: str, column: str) -> np.ndarray:
    """Numbers the labels of the test split as `number_labels` numbers those of the training split.

    Args:
        train: what `load_columns` returned, at least one row.
        test: likewise.
        split: the test split's name, for errors.
        column: the labels' column in both.

    Returns:
        The number of each row's label, int64 (N,).

    Raises:
        DataError: for names where the training split has integers or the other way round, names that are declared
            otherwise, or a label that is neither declared nor in the training split.
    """
    declared = getattr(train.features[column], "names", None)
    if declared is not None:
        require_label_names(split, test, declared, column)
        return numbers_of(test, split, column, len(declared))
    values, known = _labels(test, split, column), np.unique(_labels(train, "train", column))
    if (values.dtype.kind == "U") != (known.dtype.kind == "U"):
        found, expected = ("names" if of.dtype.kind == "U" else "integers" for of in (values, known))
        raise DataError(f"{split} column {column} holds {found}, expected {expected} as in train: write them alike")
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    unknown = np.flatnonzero(known[places] != values)
    if len(unknown):
        row = unknown[0]
        raise DataError(
            f"{split} label {values[row].item()!r} at row {row} has no example in train, expected one of its"
            f" {len(known)} labels: correct or drop the row"
        )
    return places if known.dtype.kind == "U" else values.astype(np.int64)


def number_both(
    train: Dataset, test: Dataset, split: str, column: str
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Numbers the labels of both splits, for a task that is to tell them apart.

    Args:
        train: what `load_columns` returned, at least one row.
        test: likewise.
        split: the test split's name, for errors.
        column: the labels' column in both.

    Returns:
        The names of the labels, and the number of each row's in both splits, int64 (N,).

    Raises:
        DataError: as `number_labels` and `number_alike`, and where there is but one label.
    """
    names, labels = number_labels(train, column)
    if len(names) < 2:
        raise DataError(f"train has the one label {names[0]!r}, expected two at least: give other data")
    return names, labels, number_alike(train, test, split, column)


def _labels(found: Dataset, split: str, column: str) -> np.ndarray:
    return names_or_integers(found.with_format("arrow")[:][column], split, column, "data.label_column")
