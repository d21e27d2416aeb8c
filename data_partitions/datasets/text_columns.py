"""Any data set of texts, by the names of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.reading.labels import names_or_integers, number_both, number_labels
from data_partitions.texts.labels_as_text import require_scoring, written_labels
from data_partitions.texts.rows import (
    columns_for_a_head,
    read_rows,
    require_max_length,
    require_tokenizer,
    texts_of,
)
from data_partitions.texts.tokens import TextData, cached_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

TextTask = Literal["text_classification", "text_to_text", "language_modelling"]


@dataclass(frozen=True, eq=False)
class _Rows:
    """One split: its first and second texts, and the numbers of its labels, where it has those."""

    texts: list[str]
    others: list[str] | None
    labels: np.ndarray | None


class Texts(DataSet):
    """Any texts of the hub or of a folder, with labels or to be continued, told by the names of their columns.

    What is learned is the label by a head (text_classification), the label's name in words (text_to_text), or the text
    itself token by token (language_modelling).

    Labels are integers from 0, or names, which are numbered in sorted order. Integers whose names the data declare (a
    `datasets.ClassLabel`) may be labels without any training example. Other labels are those of `train`, integers up to
    the largest one there; the test split must not have another. An empty text is the tokens that the tokenizer adds to
    every text, or where it adds none the end-of-text token.

    Source: the user's own data, in the columns of a `datasets.Dataset`; labels in words as in Raffel et al. 2020,
    "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".

    Args:
        path: a local folder or file with `train` and the test split (see `load_columns`), or a hub id.
        config: which of the data set's configurations, or folders; None for its only one.
        text_column: the texts.
        second_text_column: the second text of every example, for pairs; None where there is one. A head reads both in
            the tokenizer's own form of a pair (see `cached_pairs`); else the second one starts a new line.
        label_column: the labels. For language_modelling only partitioners use them, and None is for data without.
        user_column: who wrote each training text, names or integers; None where nobody knows.
        test_split: the name of the split to evaluate on.
        task: what is learned.
        question: for text_to_text, what stands between the text and its label's name.
        scoring: for text_to_text, what counts as right. likelihood: the answer is the label whose tokens, end of text
            included, are together the most probable behind the text, so always one of the labels. generation: greedy
            writing, free to write anything, has to give exactly the label's tokens.
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        max_length: tokens of an example, question and name included where they are written, at least 8.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range, or no label column where the task needs one.
    """

    def __init__(
        self,
        path: str,
        config: str | None = None,
        text_column: str = "text",
        second_text_column: str | None = None,
        label_column: str | None = "label",
        user_column: str | None = None,
        test_split: str = "test",
        task: TextTask = "text_classification",
        question: str = "\n\nLabel:",
        scoring: Literal["likelihood", "generation"] = "likelihood",
        tokenizer: str | None = None,
        max_length: int = 128,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        if task not in get_args(TextTask):
            raise DataError(f"data.task is {task!r}, expected {', '.join(get_args(TextTask))}: give one of them")
        if label_column is None and task != "language_modelling":
            raise DataError(f"data.label_column is missing, expected the labels' column for {task}: give its name")
        if test_split == "train":
            raise DataError("data.test_split is 'train', which is trained on: give another split of the data set")
        require_scoring(scoring)
        require_max_length(max_length, 128)
        self.path = path
        self.config = config
        self.text_column = text_column
        self.second_text_column = second_text_column
        self.label_column = label_column
        self.user_column = user_column
        self.test_split = test_split
        self.task = task
        self.question = question
        self.scoring = scoring
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads and tokenises both splits.

        Returns:
            input_ids int32 (N, T), which `transform` turns into input_ids and attention_mask int64 (B, T); and labels
            int64 where the task has some: (N,) for text_classification, and for pairs what else `cached_pairs` makes;
            (N, K) for text_to_text, the tokens that the last K columns of input_ids should have. The classes are the
            labels' numbers, zeros without a label column.

        Raises:
            DataError: where the data are missing, broken, or not as said above, or the tokenizer cannot be loaded.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        names, train, test, users = self._read()
        columns, choices = self._columns(tokenizer, train, names)
        test_columns, _ = self._columns(tokenizer, test, names)
        return TextData(
            train=columns,
            test=test_columns,
            label_names=() if self.task == "language_modelling" else names,
            task=self.task,
            user=users,
            classes=np.zeros(len(train.texts), dtype=np.int64) if train.labels is None else train.labels,
            pad_token_id=tokenizer.pad_token_id,
            choices=choices if self.scoring == "likelihood" else None,
        )

    def _read(self) -> tuple[tuple[str, ...], _Rows, _Rows, np.ndarray | None]:
        """The names of the labels, the two splits, and who wrote the training texts."""
        tested = self.label_column if self.task != "language_modelling" else None
        train = self._open("train", self.label_column, self.user_column)
        test = self._open(self.test_split, tested)
        names: tuple[str, ...] = ()
        labels = test_labels = users = None
        if tested is not None:
            names, labels, test_labels = number_both(train, test, self.test_split, tested)
        elif self.label_column is not None:
            names, labels = number_labels(train, self.label_column)
        if self.user_column is not None:
            cells = train.with_format("arrow")[:][self.user_column]
            users = names_or_integers(cells, "train", self.user_column, "data.user_column")
        return names, self._rows(train, "train", labels), self._rows(test, self.test_split, test_labels), users

    def _open(self, split: str, *others: str | None) -> Dataset:
        wanted = (self.text_column, self.second_text_column, *others)
        return read_rows(self.path, split, [column for column in wanted if column is not None], self.config)

    def _rows(self, found: Dataset, split: str, labels: np.ndarray | None) -> _Rows:
        second = None if self.second_text_column is None else texts_of(found, split, self.second_text_column)
        return _Rows(texts_of(found, split, self.text_column), second, labels)

    def _columns(
        self, tokenizer: Any, rows: _Rows, names: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], np.ndarray | None]:
        """The columns that the task reads, and the answers that there are for text_to_text."""
        import torch

        if self.task == "text_classification":
            assert rows.labels is not None
            layout = (self.max_length, self.cache)
            return columns_for_a_head(tokenizer, rows.texts, rows.others, rows.labels, *layout), None
        texts = rows.texts
        if rows.others is not None:
            texts = [f"{text}\n{other}" for text, other in zip(texts, rows.others, strict=True)]
        if self.task == "language_modelling":
            return {"input_ids": torch.from_numpy(cached_tokens(texts, tokenizer, self.max_length, self.cache))}, None
        assert rows.labels is not None
        return written_labels(tokenizer, texts, rows.labels, names, self.question, self.max_length, self.cache)
