"""Posts of users, in memory: which are left out, which are held out for testing, whose are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

REMOVED = frozenset({"", "[deleted]", "[removed]", "[ deleted ]", "[ removed ]"})
"""What is left of a post that Reddit or its author took down; with spaces as LEAF's tokens are joined."""


@dataclass(frozen=True, eq=False)
class Posts:
    """Posts, one row each.

    Args:
        texts: what they say, N of them.
        users: who wrote each, (N,), names or numbers.
        subreddits: the name of where each was posted, (N,); None where nobody knows.
        created: when each was posted, (N,), anything that can be sorted; None where nobody knows.
    """

    texts: Sequence[str]
    users: np.ndarray
    subreddits: np.ndarray | None = None
    created: np.ndarray | None = None

    def __len__(self) -> int:
        """Returns N."""
        return len(self.texts)

    def take(self, rows: np.ndarray) -> Posts:
        """Returns the posts of these rows, int64 or a mask (N,), in their order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            texts=[self.texts[row] for row in rows.tolist()],
            users=self.users[rows],
            subreddits=None if self.subreddits is None else self.subreddits[rows],
            created=None if self.created is None else self.created[rows],
        )


def without_removed(posts: Posts) -> Posts:
    """Leaves out posts that say nothing or were taken down, and those of deleted accounts, which are not one user."""
    said = np.array([text.strip() not in REMOVED for text in posts.texts], dtype=bool)
    gone = posts.users == "[deleted]" if posts.users.dtype.kind == "U" else np.zeros(len(posts), dtype=bool)
    kept = said & ~gone
    return posts if kept.all() else posts.take(kept)


def hold_out_last_tenth(posts: Posts) -> tuple[Posts, Posts]:
    """Holds out each user's last posts, by `created` where that is known, else in the order they stand in.

    That is a tenth of a user's posts, rounded down, but one at least; a user with one post keeps it for training.

    Returns:
        The posts to train on and those to test on, both in the order they stood in.
    """
    owners = np.unique(posts.users, return_inverse=True)[1].reshape(-1)
    order = np.argsort(owners, kind="stable") if posts.created is None else np.lexsort((posts.created, owners))
    sizes = np.bincount(owners)
    held_out = np.where(sizes > 1, np.maximum(1, sizes // 10), 0)
    from_the_end = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(posts))  # 1 for a user's last post
    is_test = np.empty(len(posts), dtype=bool)
    is_test[order] = from_the_end <= np.repeat(held_out, sizes)
    return posts.take(~is_test), posts.take(is_test)


def keep_users(train: Posts, test: Posts, kept: np.ndarray) -> tuple[Posts, Posts]:
    """Leaves out the posts of all users but these; test posts of users nobody trains on stay.

    The latter are all test posts where a split is by user.

    Args:
        train: the posts to train on.
        test: the posts to test on.
        kept: the users to keep, of those in `train`.
    """
    dropped = np.setdiff1d(train.users, kept)
    return train.take(~np.isin(train.users, dropped)), test.take(~np.isin(test.users, dropped))


def most_frequent(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the `count` values that occur most often, the most frequent first, equals by their own order."""
    found, times = np.unique(values, return_counts=True)
    return found[np.argsort(-times, kind="stable")[:count]]


def take_evenly(posts: Posts, count: int | None) -> Posts:
    """Takes `count` posts at equal distances, the same each time; all where there are no more, or it is None."""
    if count is None or count >= len(posts):
        return posts
    return posts.take(np.arange(count) * len(posts) // count)
