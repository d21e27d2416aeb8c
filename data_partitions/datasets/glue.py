"""GLUE: seven tasks of telling what one English sentence, or a pair of them, says."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.reading.columns import find_files, is_local, require_label_names
from data_partitions.reading.labels import numbers_of
from data_partitions.texts.rows import (
    columns_for_a_head,
    read_rows,
    require_max_length,
    require_tokenizer,
    texts_of,
)
from data_partitions.texts.tokens import TextData


@dataclass(frozen=True)
class _Task:
    """One task of GLUE: the columns of its sentences, the names of its labels, its metrics, the main one first."""

    columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


ENTAILS = ("entailment", "not_entailment")
TASKS = {
    "sst2": _Task(("sentence",), ("negative", "positive")),
    "mrpc": _Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "rte": _Task(("sentence1", "sentence2"), ENTAILS),
    "cola": _Task(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "qnli": _Task(("question", "sentence"), ENTAILS),
    "mnli": _Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qqp": _Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
}
"""Columns and names of labels as in the hub's nyu-mll/glue."""

HIDDEN = "correct it, or where it is -1, a label that GLUE hides, give a split with its labels"


class GLUE(DataSet):
    """Sentences and pairs of sentences with two or three labels, from the General Language Understanding Evaluation.

    The head of a backbone is trained for the labels. Evaluated is the split `validation`, as GLUE keeps the labels of
    its test split to itself. Scored by GLUE's metrics, the main one first: F1 of the second label and accuracy for mrpc
    and qqp, Matthews' correlation for cola (and accuracy), accuracy for the others.

    A pair is written in the tokenizer's own form of one, with the token types that tell BERT the two sentences apart.
    Where that form puts nothing between them, as GPT-2's, they run into each other.

    Source: Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding",
    Section 3 and Table 1.

    Args:
        task: sst2 (is a film review positive), mrpc and qqp (do two sentences, two questions mean the same), rte and
            mnli (does the second sentence follow from the first), cola (is it a sentence), qnli (does the sentence
            answer the question).
        path: a hub id, or a local folder with one folder per task, such as `mrpc`, and in it files `train` and
            `validation` (see `load_columns`).
        mismatched: for mnli, whether it is evaluated on texts of other genres than it is trained on,
            `validation_mismatched`, rather than of the same, `validation_matched` (or `validation` in a local folder).
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        max_length: tokens of an example, both sentences of a pair together, at least 8.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        task: Literal["sst2", "mrpc", "rte", "cola", "qnli", "mnli", "qqp"] = "sst2",
        path: str = "nyu-mll/glue",
        mismatched: bool = False,
        tokenizer: str | None = None,
        max_length: int = 128,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        if task not in TASKS:
            raise DataError(f"data.task is {task!r}, expected {', '.join(TASKS)}: give one of them")
        if mismatched and task != "mnli":
            raise DataError(f"data.mismatched is given for {task}, expected mnli: only that has two validation splits")
        require_max_length(max_length, 128)
        self.task = task
        self.path = path
        self.mismatched = mismatched
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads and tokenises the training and the validation split.

        Returns:
            input_ids int32 (N, T), which `transform` turns into input_ids and attention_mask int64 (B, T), for pairs
            where the tokenizer gives them token_type_ids int8 (N, T), and labels int64 (N,). Nobody is named as the
            writer.

        Raises:
            DataError: where the data are missing, broken, or hide their labels, or the tokenizer cannot be loaded.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        self._require_folder()
        # Both are read before anything is tokenised: what is wrong with the second one should show at once.
        train, validation = self._read("train"), self._read(self._evaluated_split())
        return TextData(
            train=self._columns(tokenizer, *train),
            test=self._columns(tokenizer, *validation),
            label_names=TASKS[self.task].label_names,
            task="text_classification",
            pad_token_id=tokenizer.pad_token_id,
            metrics=TASKS[self.task].metrics,
        )

    def _require_folder(self) -> None:
        """Refuses the folder of another task: several tasks have the same columns and numbers of labels."""
        root = Path(os.path.abspath(os.path.expanduser(self.path)))
        named = root.name.lower()
        if is_local(self.path) and named in TASKS and named != self.task and not (root / self.task).is_dir():
            raise DataError(
                f"data.path {self.path!r} is the folder of {named}, expected that of data.task {self.task}, or the one"
                f" above: correct one of them"
            )

    def _evaluated_split(self) -> str:
        """The name of the validation split, of which MNLI has two on the hub and may have one in a folder."""
        if self.task != "mnli":
            return "validation"
        if self.mismatched:
            return "validation_mismatched"
        if is_local(self.path):
            with suppress(DataError):  # a folder like the hub's, or one that reading will complain of
                find_files(self.path, "validation", self.task)
                return "validation"
        return "validation_matched"

    def _read(self, split: str) -> tuple[list[list[str]], np.ndarray]:
        """The sentences of a split, a list per column, and the labels int64 (N,), in range."""
        task = TASKS[self.task]
        found = read_rows(self.path, split, (*task.columns, "label"), self.task)
        require_label_names(f"data.path {self.path!r}, {split},", found, task.label_names)
        sentences = [texts_of(found, split, column) for column in task.columns]
        return sentences, numbers_of(found, split, "label", len(task.label_names), HIDDEN)

    def _columns(self, tokenizer: Any, sentences: list[list[str]], labels: np.ndarray) -> dict[str, Any]:
        others = sentences[1] if len(sentences) == 2 else None
        return columns_for_a_head(tokenizer, sentences[0], others, labels, self.max_length, self.cache)
