"""Users' posts from LEAF's folder, from files with a row per post, or from the hub; with a test split in any case."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.errors import DataError
from data_partitions.reading.columns import SUFFIXES, find_files, is_local, load_columns
from data_partitions.reading.hub import load_from_hub
from data_partitions.reading.labels import names_or_integers
from data_partitions.reading.leaf import leaf_files, read_leaf
from data_partitions.reading.posts import Posts, hold_out_last_tenth, without_removed

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class PostColumns:
    """What the columns of users' posts are called; `subreddit` and `created` may be missing in the data."""

    user: str
    text: str
    subreddit: str
    created: str


def require_posts(path: str, split: str, posts: Posts) -> Posts:
    """Returns the posts of a split; a DataError where there are none."""
    if not len(posts):
        raise DataError(
            f"data.path {path!r} leaves no posts to {split} on, expected at least one: give more users or posts"
        )
    return posts


def read_posts(path: str, columns: PostColumns) -> tuple[Posts, Posts]:
    """Reads users' posts, without those that say nothing, and holds out each user's last tenth where no split is given.

    Args:
        path: as for `Reddit`.
        columns: what the columns are called; not used for LEAF's folder.

    Returns:
        The posts to train on and those to test on, at least one each.

    Raises:
        DataError: for missing or malformed data.
    """
    root = Path(os.path.expanduser(path))
    if is_local(path) and not root.exists():
        raise DataError(
            f"data.path {path!r} does not exist, expected LEAF's folder with train/*.json, or posts by user as"
            f" train.jsonl: get LEAF's Reddit (TalwalkarLab/leaf), or give another --data.path"
        )
    if files := leaf_files(root, "train"):
        train, tests = read_leaf(files), leaf_files(root, "test")
        test = read_leaf(tests) if tests else None
    else:
        train = _read_columns(path, "train", columns)
        test = _read_columns(path, "test", columns) if _has_test(path) else None
    train = require_posts(path, "train", without_removed(train))
    train, test = hold_out_last_tenth(train) if test is None else (train, without_removed(test))
    return train, require_posts(path, "test", test)


def _has_test(path: str) -> bool:
    """Whether the training posts have test posts beside them."""
    if not is_local(path):
        return "test" in (load_from_hub(path, None, "train").info.splits or ())
    file = find_files(path, "train")[0]
    beside = os.listdir(file.parent) if os.path.isdir(os.path.expanduser(path)) else []
    return any(name.startswith(("test.", "test-")) and name.endswith(SUFFIXES) for name in beside)


def _read_columns(path: str, split: str, columns: PostColumns) -> Posts:
    """The posts of a split, from the columns that there are."""
    optional = (columns.subreddit, columns.created)
    table = load_columns(path, split, [columns.user, columns.text], optional=optional).with_format("arrow")[:]
    texts = table[columns.text].to_pylist()
    if texts and not isinstance(texts[0], str):
        raise DataError(
            f"{split} column {columns.text} holds {type(texts[0]).__name__}, expected texts: name another column with"
            f" --data.text_column"
        )
    return Posts(
        texts,
        names_or_integers(table[columns.user], split, columns.user, "data.user_column"),
        _subreddits(split, columns.subreddit, table) if columns.subreddit in table.column_names else None,
        _times(split, columns.created, table) if columns.created in table.column_names else None,
    )


def _subreddits(split: str, column: str, table: pyarrow.Table) -> np.ndarray:
    return names_or_integers(table[column], split, column, "data.subreddit_column", names=True)


def _times(split: str, column: str, table: pyarrow.Table) -> np.ndarray:
    """A column of times, as something that sorts in time."""
    import pyarrow

    found = table[column]
    try:
        if pyarrow.types.is_string(found.type) or pyarrow.types.is_large_string(found.type):
            found = found.cast(pyarrow.float64())  # seconds, as some copies have them in quotes
        times: np.ndarray = found.to_numpy()
        if times.dtype.kind not in "iufM":
            raise TypeError(times.dtype)
    except (pyarrow.ArrowException, TypeError) as error:
        raise DataError(
            f"{split} column {column} holds {table[column].type}, expected numbers or times: name another column with"
            f" --data.created_column"
        ) from error
    return times
