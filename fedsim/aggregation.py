"""How the uploads of a round become one update."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedsim.codec import Part
from fedsim.sparse import SparseVector
from fedsim.state import Plan


@dataclass(frozen=True, eq=False)
class Arrived:
    """An upload at the server.

    Attributes:
        client: who sent it.
        plan: what it was asked to do.
        update: of P, as it was decoded.
        beside: what else travelled.
        examples: how many it trained on.
        weight: in the mean, as `server.weighting` says.
    """

    client: int
    plan: Plan
    update: SparseVector
    beside: tuple[Part, ...]
    examples: int
    weight: float


class Aggregate(Protocol):
    """Turns the uploads of a round into one update."""

    def add(self, arrived: Arrived) -> None:
        """Takes the next upload, in cohort order."""

    def finish(self) -> Tensor | None:
        """Returns the update, (P,), or None where nothing arrived."""


class Mean:
    """The weighted mean of the updates; an entry that was not sent counts as zero (FLASC, Algorithm 1, line 20)."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self._total = torch.zeros(length, dtype=dtype, device=device)
        self._weight = 0.0

    def add(self, arrived: Arrived) -> None:
        """Adds one update with the upload's weight."""
        self.add_weighted(arrived.update, arrived.weight)

    def add_weighted(self, update: SparseVector, weight: float) -> None:
        """Adds one update with another weight."""
        values = update.values.to(self._total)
        if weight != 1:  # a copy that a whole backbone can do without
            values = values * weight
        if update.indices is None:
            self._total += values
        else:
            self._total[update.indices.to(self._total.device)] += values
        self._weight += weight

    def finish(self) -> Tensor | None:
        """Returns the mean, (P,), or None where nothing arrived."""
        return self._total / self._weight if self._weight else None
