"""What a data set is to the simulator: columns of tensors, names of labels, the class and writer of each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from data_partitions.texts.writing import Writing

WITHOUT_NUMBERED_LABELS = ("text_to_text", "generation", "language_modelling")
"""Tasks whose column labels holds an answer's tokens, (N, K), or is not there; label_names then name the classes."""


@dataclass(frozen=True, eq=False)
class FederatedData:
    """Train and test examples, before anybody says which client holds which.

    Subclass and override `draw` and `transform` together for a data set with augmentation.

    Args:
        train: columns under Hugging Face's names, one row per example, such as pixel_values float32 (N, C, H, W) and
            labels int64 (N,), or uint8 (N, L) of 0 and 1 where an example may have several of L labels.
        test: the same columns for the held-out examples.
        label_names: the name of each label; labels lie in 0 to len(label_names) - 1. Where a task has none, the names
            of the classes, or nothing.
        task: what is learned, such as "image_classification".
        user: who wrote each training example (N,), any sortable dtype; None where nobody knows.
        classes: the class of each training example (N,), integers, by which partitioners deal; None where that is the
            column labels.
        pad_token_id: the token that fills up rows of input_ids, by which some models find a text's end; None for data
            without.
        metrics: by which metrics the task is scored, the main one first; the task's own where none is named.
        choices: the only answers there are in text_to_text, as tokens int32 (L, K), -1 behind the last of each; None
            where any answer may be written.
        writing: how answers are written and judged in generation; None where they are not.
        notes: what the user should know, a line each; printed when a run starts.

    Raises:
        DataError: for an empty split, columns of unequal length, or a label outside its range.
    """

    train: dict[str, Tensor]
    test: dict[str, Tensor]
    label_names: tuple[str, ...]
    task: str
    user: np.ndarray | None = None
    classes: np.ndarray | None = None
    pad_token_id: int | None = None
    metrics: tuple[str, ...] = ()
    choices: np.ndarray | None = None
    writing: Writing | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split, columns in (("train", self.train), ("test", self.test)):
            examples = _count_rows(split, columns)
            if self.label_names and self.task not in WITHOUT_NUMBERED_LABELS:
                _check_labels(split, columns, len(self.label_names))
            if self.choices is not None:
                _check_choices(split, columns, self.choices)
            if split == "train":
                _check_length("user", self.user, examples)
                _check_length("classes", self.classes, examples)

    def spans(self, columns: dict[str, Tensor]) -> np.ndarray | None:
        """Says which places of input_ids each row needs, for texts of which most are shorter than the longest.

        Args:
            columns: of a split, (N, ...) each.

        Returns:
            int64 (N, 2), the first place and the one behind the last: what lies outside in every row of a batch is left
            out of it. None where a row needs all, as here.
        """
        return None

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Makes the random draws of augmentation, apart from their use so that every trainer can replay them.

        Args:
            generator: source of randomness, already made for this client and round.
            shape: how many examples and how they are laid out, such as (steps, B).

        Returns:
            Tensors whose leading dimensions are `shape`; empty where the data set does not augment.
        """
        return {}

    def transform(self, batch: dict[str, Tensor], draws: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Turns stored rows into what the model reads, on whatever device they are.

        Args:
            batch: rows of the columns, (B, ...) each.
            draws: what `draw` made for these rows, (B, ...) each; None at evaluation.

        Returns:
            The batch with the same names; here the batch itself.
        """
        return batch


class DataSet(ABC):
    """Names a data set and how to read it; making one is cheap, `load` does the work."""

    @abstractmethod
    def load(self) -> FederatedData:
        """Reads the examples.

        Returns:
            The data, on the CPU.

        Raises:
            DataError: where the data are missing or malformed.
        """


def _count_rows(split: str, columns: dict[str, Tensor]) -> int:
    """The number of rows that all columns of a split share."""
    lengths = {name: len(column) for name, column in columns.items()}
    if not lengths or min(lengths.values()) == 0:
        raise DataError(f"{split} has no examples, expected at least one: check the data set's files and arguments")
    if len(set(lengths.values())) > 1:
        raise DataError(f"{split} columns have lengths {lengths}, expected equal ones: give every example every column")
    return next(iter(lengths.values()))


def _check_length(name: str, values: np.ndarray | None, examples: int) -> None:
    """Refuses what is not one value per training example."""
    if values is not None and values.shape != (examples,):
        raise DataError(f"{name} has shape {values.shape}, expected ({examples},): give one value per train row")


def _check_choices(split: str, columns: dict[str, Tensor], choices: np.ndarray) -> None:
    """Refuses an answer that is no choice, which would pass for the first one."""
    import torch

    possible = torch.from_numpy(choices).long().clamp(min=-1)
    given = columns["labels"].clamp(min=-1).unique(dim=0)
    known = (given[:, None] == possible).all(-1).any(1) if given.shape[1] == possible.shape[1] else given[:, 0] < -1
    if not bool(known.all()):
        answer = given[~known][0].tolist()
        raise DataError(f"{split} has the answer {answer}, in tokens, which is none of the choices: give them all")


def _check_labels(split: str, columns: dict[str, Tensor], names: int) -> None:
    """Refuses a label without a name, which would otherwise fail deep inside the loss."""
    if "labels" not in columns:
        raise DataError(f"{split} has columns {sorted(columns)}, expected one called labels: rename the label column")
    labels = columns["labels"]
    if labels.ndim == 2:
        if labels.shape[1] != names or not bool(((labels == 0) | (labels == 1)).all()):
            raise DataError(
                f"{split} labels are {labels.shape[1]} columns from {labels.min()} to {labels.max()}, expected {names}"
                f" of 0 and 1: give a column for every label"
            )
        return
    outside = ((labels < 0) | (labels >= names)).nonzero()
    if len(outside):
        where = tuple(outside[0].tolist())
        raise DataError(
            f"{split} label {labels[where].item()} at row {where[0]} is outside the expected 0 to {names - 1}:"
            f" correct the row or name every label"
        )
