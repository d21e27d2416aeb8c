"""LEAF's files: a folder per split, JSON files in it, users in these, and their examples as x and y."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_partitions.errors import DataError
from data_partitions.reading.hub import first_line
from data_partitions.reading.posts import Posts

MARKS = frozenset({"<BOS>", "<EOS>", "<PAD>"})
"""What LEAF's preprocessing put into a comment; the words themselves it has in lower case."""


def leaf_files(root: Path, split: str) -> list[Path]:
    """Finds the JSON files of a split, `root/split/*.json`, by name; none where this is no folder of LEAF's."""
    folder = root / split
    return sorted(file for file in folder.glob("*.json") if file.is_file()) if folder.is_dir() else []


def read_leaf(files: list[Path]) -> Posts:
    """Reads the texts of one split.

    An x is a text, or a text's words in pieces of equal length, as LEAF leaves Reddit: `[["<BOS>", "so", ...],
    ["true", "<EOS>", "<PAD>", ...]]`. Its words are joined by spaces again, without these marks. A y is read for its
    `subreddit` alone. `num_samples` is not: in LEAF's Reddit it counts a user's comments in all splits together.

    Source: Caldas et al. 2018, LEAF, and its code (TalwalkarLab/leaf, data/reddit/source/preprocess.py).

    Args:
        files: what `leaf_files` found; users may stand in one split only, or without any example.

    Returns:
        The posts in the order of files, users and x; subreddits where the y name them.

    Raises:
        DataError: for a file that is not of this form, or where some y name a subreddit and others do not.
    """
    texts: list[str] = []
    users: list[str] = []
    subreddits: list[str | None] = []
    for file in files:
        for user, row, x, y in _examples(file):
            texts.append(_text(file, user, row, x))
            users.append(user)
            subreddits.append(_subreddit(file, user, row, y))
            if (subreddits[-1] is None) != (subreddits[0] is None):
                found = "no" if subreddits[-1] is None else "a"
                raise DataError(
                    f"{file} user {user!r} has {found} subreddit at row {row}, unlike the first text,"
                    f" expected one in every y or in none: add or drop it"
                )
    known = bool(subreddits) and subreddits[0] is not None
    return Posts(texts, np.array(users, dtype=str), np.array(subreddits, dtype=str) if known else None)


def _examples(file: Path) -> Iterator[tuple[str, int, Any, Any]]:
    """Each example of a file: its user, its number there, x and y."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({first_line(error)}), expected LEAF's JSON: get it again") from error
    there = content if isinstance(content, dict) else {}
    named, data = there.get("users"), there.get("user_data")
    if not isinstance(named, list) or not isinstance(data, dict):
        keys = ", ".join(map(repr, list(there)[:5])) or "neither"
        raise DataError(f"{file} has {keys}, expected LEAF's 'users', a list, and 'user_data', by user: get it again")
    for user in named:
        of_user = data.get(user) if isinstance(user, str) else None
        x, y = (of_user.get("x"), of_user.get("y")) if isinstance(of_user, dict) else (None, None)
        if not isinstance(x, list) or not isinstance(y, list):
            raise DataError(f"{file} has no x and y for user {user!r}, expected a list of each: get it again")
        if len(x) != len(y):
            raise DataError(f"{file} user {user!r} has {len(x)} x and {len(y)} y, expected as many: get it again")
        for row, (one, other) in enumerate(zip(x, y, strict=True)):
            yield user, row, one, other


def _text(file: Path, user: str, row: int, x: Any) -> str:
    """A text as it is, or the words of its pieces."""
    if isinstance(x, str):
        return x
    if isinstance(x, list) and all(isinstance(piece, list) for piece in x):
        try:
            return " ".join([word for word in chain.from_iterable(x) if word not in MARKS])
        except TypeError:  # something that is no word
            pass
    raise DataError(
        f"{file} user {user!r} has an x at row {row} of another form, expected a text or lists of its words: correct it"
    )


def _subreddit(file: Path, user: str, row: int, y: Any) -> str | None:
    name = y.get("subreddit") if isinstance(y, dict) else None
    if name is not None and not isinstance(name, str):
        raise DataError(f"{file} user {user!r} has the subreddit {name!r} at row {row}, expected a name: correct it")
    return name
