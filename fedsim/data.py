"""Data as the engine sees it: columns under Hugging Face's names, resident on the device, cut into batches by row."""

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]


class Writing(Protocol):
    """How a language model's answers are written and judged. `data_partitions.texts.writing.Writing` is one."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer."""

    @property
    def samples(self) -> int:
        """How many answers a question gets."""

    @property
    def temperature(self) -> float:
        """0 writes the likeliest token each time; more draws from the softmax of logits divided by it."""

    @property
    def end_token_id(self) -> int | None:
        """The token at which an answer ends; None where only its length ends it."""

    def judge(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Says which answers (B, S, K) to rows (B,) of the test split are right, bool (B, S)."""


class FederatedData(Protocol):
    """What a data set brings. `data_partitions.FederatedData` is one; a user's own needs only these names."""

    @property
    def user(self) -> np.ndarray | None:
        """Who wrote each training example, (N,); None where nobody knows."""

    @property
    def classes(self) -> np.ndarray | None:
        """The class of each training example, (N,), for partitioners; None where that is the column labels."""

    @property
    def pad_token_id(self) -> int | None:
        """What fills up rows of tokens; None for data without."""

    @property
    def metrics(self) -> Sequence[str]:
        """By which metrics the task is scored, the main one first; the task's own where none is named."""

    @property
    def choices(self) -> np.ndarray | None:
        """The only answers that text_to_text has, as tokens (L, K), negative behind the last; None for any answer."""

    @property
    def writing(self) -> Writing | None:
        """How answers are written and judged in generation; None where they are not."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know, a line each; printed when a run starts."""

    @property
    def train(self) -> dict[str, Tensor]:
        """The training columns, (N, ...) each."""

    @property
    def test(self) -> dict[str, Tensor]:
        """The test columns."""

    @property
    def label_names(self) -> Sequence[str]:
        """The labels' names, in the order of their numbers."""

    @property
    def task(self) -> str:
        """What is learned."""

    def spans(self, columns: dict[str, Tensor]) -> np.ndarray | None:
        """Returns where each row's tokens begin and end, int64 (N, 2); None where rows have no places to leave out."""

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draws what augmentation needs for examples in that shape, each (*shape, ...); empty where there is none."""

    def transform(self, batch: Batch, draws: dict[str, Tensor] | None) -> Batch:
        """Turns stored columns (B, ...) into the model's; without draws, as evaluation sees them."""


PLACED = ("input_ids", "attention_mask", "token_type_ids")
"""Columns of one entry a token, (N, T): a batch of short texts does without what lies beyond the longest of them."""


class Examples:
    """One split on the device, and the batches made of it.

    Args:
        data: the data set, for its transform.
        columns: the split's columns, (N, ...) each.
        device: where they live from now on.
        dtype: what floating-point columns become, before and after the transform.
    """

    def __init__(
        self, data: FederatedData, columns: dict[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._transform = data.transform
        self.columns = {
            name: column.to(device, dtype if column.is_floating_point() else None) for name, column in columns.items()
        }
        self._spans = data.spans(columns)
        self.device = device
        self.dtype = dtype

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def seen_as(self, columns: dict[str, Tensor]) -> "Examples":
        """Returns the same rows with other columns, (N, ...) each, which are as the model reads them."""
        other = copy.copy(self)
        other.columns, other._transform, other._spans = columns, _as_they_are, None
        return other

    @property
    def lengths(self) -> np.ndarray | None:
        """How many places each row has, (N,); None where all have as many."""
        return None if self._spans is None else self._spans[:, 1] - self._spans[:, 0]

    def places(self, rows: np.ndarray) -> slice:
        """Returns the places that some rows (B,) need; known here, so that nothing waits for the device."""
        if self._spans is None:
            return slice(None)
        spans = self._spans[rows]
        return slice(int(spans[:, 0].min()), int(spans[:, 1].max()))

    def batch(self, rows: Tensor, draws: dict[str, Tensor] | None = None, places: slice = slice(None)) -> Batch:
        """Gathers rows.

        Args:
            rows: (B,) int64 on the device, -1 for padding.
            draws: augmentation of these rows, (B, ...) each, or None.
            places: of the rows' tokens; all where it is not said.

        Returns:
            The transformed columns (B, ...) and `weight` (B,), 1 for an example and 0 for padding.
        """
        present = rows >= 0
        chosen = rows.clamp(min=0)
        stored = {name: column[:, places] if name in PLACED else column for name, column in self.columns.items()}
        batch = self._transform({name: column[chosen] for name, column in stored.items()}, draws)
        batch = {name: c.to(self.dtype) if c.is_floating_point() else c for name, c in batch.items()}
        return {**batch, "weight": present.to(self.dtype)}


def _as_they_are(batch: Batch, draws: dict[str, Tensor] | None) -> Batch:
    return batch
