"""Reddit: what users posted, to be continued token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.reading.post_files import PostColumns, read_posts, require_posts
from data_partitions.reading.posts import Posts, keep_users, take_evenly
from data_partitions.texts.rows import require_max_length, require_tokenizer
from data_partitions.texts.tokens import TextData, cached_tokens

if TYPE_CHECKING:
    from torch import Tensor


class Reddit(DataSet):
    """Posts by user, for next-token prediction; user is the author, the class the subreddit's number where it is known.

    LEAF's folder is read as it is, words apart and in lower case, `train` and `test` but not `val`. Other data have a
    row per post. Where there is no test split, each user's last tenth is held out: rounded down, but one post at least,
    and none of a user with one post; the last by `created` where the data have that, else the last in the files. None
    of this is random. Before it, posts are left out that are empty or taken down ([deleted], [removed]), and those of
    the account [deleted]. Each post is one example; nothing is added but what the tokenizer adds.

    FLASC's copy of LEAF's Reddit is not published. It has 2 million comments of 20,000 users in Table 2, 1.1 million of
    32,000 in Table 4, and in its code other users to test on than to train on.

    Source: Caldas et al. 2018, LEAF; used as in FLASC (Kuo et al.), Section 4 and Appendix B.

    Args:
        path: LEAF's folder, with `train/*.json` and maybe `test/*.json`; or a local folder or file with `train` and
            maybe `test` (see `load_columns`); or a hub id.
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        max_length: tokens of a post, at least 8; the rest is cut off.
        user_column: who wrote a post, names or whole numbers. LEAF's folder needs no names of columns.
        text_column: what it says.
        subreddit_column: where it was posted; used where the data have it.
        created_column: when, a number or a time; used where the data have it.
        min_posts: users with fewer training posts are left out, and with them their test posts.
        max_users: how many users are kept, those whose training posts come first; None for all.
        max_test_examples: how many test posts are kept, at equal distances in their order; None for all.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "./leaf/data/reddit/data",
        tokenizer: str | None = None,
        max_length: int = 256,
        user_column: str = "user_id",
        text_column: str = "text",
        subreddit_column: str = "subreddit",
        created_column: str = "created",
        min_posts: int = 1,
        max_users: int | None = None,
        max_test_examples: int | None = None,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        require_max_length(max_length, 256)
        require_whole("data.min_posts", min_posts, 1, 5)
        if max_users is not None:
            require_whole("data.max_users", max_users, 1, 1000)
        if max_test_examples is not None:
            require_whole("data.max_test_examples", max_test_examples, 1, 1000)
        self.path = path
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.columns = PostColumns(user_column, text_column, subreddit_column, created_column)
        self.min_posts = min_posts
        self.max_users = max_users
        self.max_test_examples = max_test_examples
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads and tokenises both splits.

        Returns:
            Posts as input_ids int32 (N, T), which `transform` turns into input_ids and attention_mask int64 (B, T).
        """
        tokenizer = require_tokenizer(self.tokenizer)
        train, test = self._limit(*read_posts(self.path, self.columns))
        names, classes = np.zeros(0, dtype=str), np.zeros(len(train), dtype=np.int64)
        if train.subreddits is not None:
            names, classes = np.unique(train.subreddits, return_inverse=True)
        return TextData(
            train=self._tokens(tokenizer, train),
            test=self._tokens(tokenizer, take_evenly(test, self.max_test_examples)),
            label_names=tuple(names.tolist()),
            task="language_modelling",
            user=train.users,
            classes=classes.reshape(-1),
            pad_token_id=tokenizer.pad_token_id,
        )

    def _limit(self, train: Posts, test: Posts) -> tuple[Posts, Posts]:
        """Keeps the users that the arguments ask for."""
        if self.min_posts == 1 and self.max_users is None:
            return train, test
        users, first, posts = np.unique(train.users, return_index=True, return_counts=True)
        enough = np.flatnonzero(posts >= self.min_posts)
        if not len(enough):
            raise DataError(
                f"data.min_posts is {self.min_posts}, expected at most {posts.max()}, the most of any user: lower it"
            )
        kept = enough[np.argsort(first[enough])][: self.max_users]
        train, test = keep_users(train, test, users[kept])
        return train, require_posts(self.path, "test", test)

    def _tokens(self, tokenizer: Any, posts: Posts) -> dict[str, Tensor]:
        import torch

        return {"input_ids": torch.from_numpy(cached_tokens(posts.texts, tokenizer, self.max_length, self.cache))}
