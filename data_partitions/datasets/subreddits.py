"""Subreddits: the most active users' posts in the most frequent subreddits, to be told by the subreddit's name."""

from __future__ import annotations

from typing import Literal

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.reading.post_files import PostColumns, read_posts, require_posts
from data_partitions.reading.posts import Posts, keep_users, most_frequent, take_evenly
from data_partitions.texts.labels_as_text import require_scoring, written_labels
from data_partitions.texts.rows import require_max_length, require_tokenizer
from data_partitions.texts.tokens import TextData

QUESTION = "\n\nSubreddit:"
"""Stands between a post and its subreddit's name; the paper does not say what it put there."""


class Subreddits(DataSet):
    """Posts by user, each to be told by its subreddit's name, which a language model learns to write behind it.

    Kept are first the subreddits with the most training posts, then the users with the most training posts in these;
    equals by name. Labels are numbered by name. This choice is ours: the paper has 100 users, 50 subreddits and 35,000
    posts, and does not say how it came to them. Posts are read, left out and held out as in `Reddit`.

    Source: FLASC (Kuo et al.), Section 4 and Appendix B, from LEAF's Reddit (Caldas et al. 2018).

    Args:
        path: as in `Reddit`; the posts must name their subreddits.
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        scoring: what counts as right. likelihood: the answer is the subreddit whose tokens, end of text included, are
            together the most probable behind the post, so always one of the subreddits. generation: greedy writing,
            free to write anything, has to give exactly the subreddit's tokens.
        max_length: tokens of an example, question and name included, at least 8.
        users: how many users are kept; all where there are no more.
        subreddits: how many subreddits are kept, at least 2; all where there are no more.
        user_column: who wrote a post, names or whole numbers. LEAF's folder needs no names of columns.
        text_column: what it says.
        subreddit_column: where it was posted.
        created_column: when, a number or a time; used where the data have it.
        max_test_examples: how many test posts are kept, at equal distances in their order; None for all.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "./leaf/data/reddit/data",
        tokenizer: str | None = None,
        scoring: Literal["likelihood", "generation"] = "likelihood",
        max_length: int = 256,
        users: int = 100,
        subreddits: int = 50,
        user_column: str = "user_id",
        text_column: str = "text",
        subreddit_column: str = "subreddit",
        created_column: str = "created",
        max_test_examples: int | None = None,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        require_max_length(max_length, 256)
        require_scoring(scoring)
        require_whole("data.users", users, 1, 100)
        require_whole("data.subreddits", subreddits, 2, 50)
        if max_test_examples is not None:
            require_whole("data.max_test_examples", max_test_examples, 1, 1000)
        self.path = path
        self.tokenizer = tokenizer
        self.scoring = scoring
        self.max_length = max_length
        self.users = users
        self.subreddits = subreddits
        self.columns = PostColumns(user_column, text_column, subreddit_column, created_column)
        self.max_test_examples = max_test_examples
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads, chooses and tokenises both splits.

        Returns:
            Posts with question and name as input_ids int32 (N, T), which `transform` turns into input_ids and
            attention_mask int64 (B, T), and labels int64 (N, K), the tokens that the last K columns should have.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        train, test = self._choose(*read_posts(self.path, self.columns))
        test = take_evenly(test, self.max_test_examples)
        names, classes = np.unique(_subreddits(train), return_inverse=True)
        label_names = tuple(names.tolist())
        layout = (label_names, QUESTION, self.max_length, self.cache)
        columns, answers = written_labels(tokenizer, train.texts, classes, *layout)
        test_columns, _ = written_labels(tokenizer, test.texts, np.searchsorted(names, _subreddits(test)), *layout)
        return TextData(
            train=columns,
            test=test_columns,
            label_names=label_names,
            task="text_to_text",
            user=train.users,
            classes=classes,
            pad_token_id=tokenizer.pad_token_id,
            choices=answers if self.scoring == "likelihood" else None,
        )

    def _choose(self, train: Posts, test: Posts) -> tuple[Posts, Posts]:
        """The posts of the most active users in the most frequent subreddits."""
        for split, posts in (("train", train), ("test", test)):
            if posts.subreddits is None:
                raise DataError(
                    f"data.path {self.path!r} names no subreddits in {split}, expected a column"
                    f" {self.columns.subreddit!r}, or LEAF's y with one: name the column with --data.subreddit_column"
                )
        kept = most_frequent(_subreddits(train), self.subreddits)
        active = most_frequent(train.users[np.isin(_subreddits(train), kept)], self.users)
        train, test = keep_users(train, test, active)
        train = train.take(np.isin(_subreddits(train), kept))
        # These users need not have posted in every one of them: the names are those that clients can learn.
        test = test.take(np.isin(_subreddits(test), _subreddits(train)))
        if len(np.unique(_subreddits(train))) < 2:
            raise DataError(
                f"data.path {self.path!r} has its {len(active)} most active users in {_subreddits(train)[0]} alone,"
                f" expected at least two subreddits: raise data.users or give other posts"
            )
        return train, require_posts(self.path, "test", test)


def _subreddits(posts: Posts) -> np.ndarray:
    assert posts.subreddits is not None
    return posts.subreddits
