"""The rows of a data set of texts, held to what they should be before anything is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.errors import DataError
from data_partitions.reading.columns import load_columns
from data_partitions.texts.tokens import cached_pairs, cached_tokens, load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

LEAST_TOKENS = 8
"""Room for what a tokenizer adds, and for something of each of two texts."""


def require_max_length(max_length: int, example: int) -> None:
    """Refuses a max_length that leaves no room for a text.

    Args:
        max_length: what was given.
        example: a value to propose.

    Raises:
        DataError: if it is no whole number of at least 8.
    """
    require_whole("data.max_length", max_length, LEAST_TOKENS, example)


def require_tokenizer(path: str | None) -> Any:
    """Loads the tokenizer that a data set names.

    Args:
        path: as `load_tokenizer` takes it; None where nobody named one.

    Returns:
        The tokenizer.

    Raises:
        DataError: if none is named, or it cannot be loaded.
    """
    if path is None:
        raise DataError("data.tokenizer is missing, expected a folder or a hub id: give the backbone's path")
    return load_tokenizer(path)


def read_rows(
    path: str, split: str, columns: Sequence[str], config: str | None = None, *, key: str = "data.path"
) -> Dataset:
    """Reads columns of a split that has rows; as `load_columns`, whose errors it raises.

    Raises:
        DataError: if there are no rows.
    """
    found = load_columns(path, split, columns, config=config, key=key)
    if len(found) == 0:
        raise DataError(f"{key} {path!r} has no rows in {split}, expected at least one: check its files")
    return found


def texts_of(found: Dataset, split: str, column: str) -> list[str]:
    """The texts of a column.

    Args:
        found: what `read_rows` returned.
        split: the split's name, for errors.
        column: the column's name.

    Returns:
        One text a row; an empty one is a text.

    Raises:
        DataError: if the column holds something else.
    """
    texts: list[str] = found.with_format("arrow")[:][column].to_pylist()
    if not isinstance(texts[0], str):
        raise DataError(f"{split} column {column} holds {type(texts[0]).__name__}, expected texts: give other data")
    return texts


def columns_for_a_head(
    tokenizer: Any,
    texts: Sequence[str],
    others: Sequence[str] | None,
    labels: np.ndarray,
    max_length: int,
    cache: str | Path,
) -> dict[str, Tensor]:
    """The columns of text_classification.

    Args:
        tokenizer: what `load_tokenizer` returned.
        texts: at least one.
        others: the second text of each pair; None where an example is one text.
        labels: int64 (N,).
        max_length: tokens of an example.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Returns:
        `input_ids` int32 (N, T), `labels`, and for pairs what else `cached_pairs` makes.
    """
    import torch

    if others is None:
        columns = {"input_ids": cached_tokens(texts, tokenizer, max_length, cache)}
    else:
        columns = cached_pairs(texts, others, tokenizer, max_length, cache)
    return {name: torch.from_numpy(column) for name, column in columns.items()} | {"labels": torch.from_numpy(labels)}
