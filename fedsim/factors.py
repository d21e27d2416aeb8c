"""Aggregation of LoRA's factors module by module, for methods that take over what they aggregated.

A client's product B_u A_u is not linear in what it sends, so the mean of the factors is not the mean of the products.
How far off an aggregation is, is measured on every round. Nothing here makes a matrix of D_out by D_in, and one
module's factors are held in float64 at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.aggregation import Arrived, Mean
from fedsim.parameters import Place
from fedsim.state import ServerState
from fedsim.tiers import rank_slice

Weighting = Literal["uniform", "examples"]
"""Every client counts the same, or each as many times as it has examples."""


class Combined(NamedTuple):
    """What a module's factors became at the server.

    Attributes:
        a: (R, D_in).
        b: (D_out, R).
        merged: (D_out, D_in), what its frozen weight took on beside them, over the scale alpha / r; None for nothing.
    """

    a: Tensor
    b: Tensor
    merged: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Stack:
    """One module's factors of all clients of a round, in float64, without the scale alpha / r.

    Attributes:
        layer: the adapted module.
        a: (C, R, D_in).
        b: (C, D_out, R).
        weights: (C,), summing to 1.
    """

    layer: str
    a: Tensor
    b: Tensor
    weights: Tensor

    def mean(self) -> Combined:
        """The weighted mean of each factor."""
        return Combined(torch.tensordot(self.weights, self.a, 1), torch.tensordot(self.weights, self.b, 1))

    def concatenated(self) -> tuple[Tensor, Tensor]:
        """Factors (C R, D_in) and (D_out, C R) whose product is the weighted mean of the products."""
        return self._weight_by_row[:, None] * self._rows, self._columns

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """The inner products of all rows of all A, and of all columns of all B: (C R, C R) each."""
        return self._rows @ self._rows.T, self._columns.T @ self._columns

    def distance(self, combined: Combined) -> tuple[float, float]:
        """How far something is from the weighted mean of the clients' products.

        Args:
            combined: float64.

        Returns:
            The squared Frobenius norms of the difference, and of the mean of the products.
        """
        gram_a, gram_b = self.grams
        weight = self._weight_by_row
        whole = float(weight @ (gram_a * gram_b) @ weight)
        a, b, merged = combined
        if merged is not None:  # such a method made D_out by D_in already
            right, left = self.concatenated()
            return float((left @ right - b @ a - merged).square().sum()), whole
        across = float(weight @ ((self._columns.T @ b) * (self._rows @ a.T)).sum(1))
        own = float(((b.T @ b) * (a @ a.T)).sum())
        return max(whole - 2 * across + own, 0.0), max(whole, 0.0)

    @property
    def _rows(self) -> Tensor:
        """All A, one under another: (C R, D_in)."""
        return self.a.flatten(0, 1)

    @property
    def _columns(self) -> Tensor:
        """All B, side by side: (D_out, C R)."""
        return self.b.permute(1, 0, 2).flatten(1)

    @property
    def _weight_by_row(self) -> Tensor:
        """(C R,)."""
        return self.weights.repeat_interleave(self.a.shape[1])


Combine = Callable[[Stack], Combined]
"""(one module's factors of all clients) -> what the server makes of them."""

Survey = Callable[[Iterator[Stack]], Combine]
"""(every module's factors in turn) -> how each is combined, where that depends on all of them."""


class FactorAggregate:
    """Collects the clients' factors, combines them module by module, and takes the weighted mean of everything else.

    It also measures `product_error`: the Frobenius norm of the mean of products minus what came out (the product of
    the server's factors, and what a frozen weight took on), over that of the mean of products, over all modules
    together. Inner products are in float64, which leaves about 1e-8 where the difference is zero.

    Args:
        state: the server's; uploads are differences from its P. A client of a smaller rank started from its slice.
        weighting: of the clients, in the mean of the products too; as `server.weighting` says where it is None.
        combine: makes a module's factors; the mean of each where it is not given.
        survey: gives `combine` once it has seen all modules; it goes before the other.
    """

    def __init__(
        self,
        state: ServerState,
        weighting: Weighting | None,
        combine: Combine = Stack.mean,
        survey: Survey | None = None,
    ) -> None:
        self._state = state
        self._weighting = weighting
        self._combine = combine
        self._survey = survey
        self._mean = Mean(state.layout.length, state.vector.dtype, state.vector.device)
        self._trained: list[Tensor] = []
        self._weights: list[float] = []

    def add(self, arrived: Arrived) -> None:
        """Keeps one upload."""
        weight = weight_of(arrived, self._weighting)
        self._mean.add_weighted(arrived.update, weight)
        started = self._started(arrived.plan.lora_rank)
        self._trained.append(started - arrived.update.to_dense().to(started))
        self._weights.append(weight)

    def finish(self) -> Tensor | None:
        """Returns P minus what came out, (P,), or None where nothing arrived."""
        update = self._mean.finish()
        if update is None:
            return None
        before = self._state.vector.detach()
        after = before - update
        views = self._state.layout.views(after)
        combine = self._combine
        if self._survey is not None:
            combine = self._survey(self._stack(layer, factors) for layer, factors in self._modules())
        off, whole = 0.0, 0.0
        for layer, factors in self._modules():
            stack = self._stack(layer, factors)
            made = combine(stack)
            # Measured is what P holds in the end, in its own precision, but for the last bit of `assign`.
            a, b = (
                views[factors[segment].name].copy_(value).double() if segment in factors else value
                for segment, value in (("A", made.a), ("B", made.b))
            )
            squares = stack.distance(Combined(a, b, made.merged))
            off, whole = off + squares[0], whole + squares[1]
        if whole:
            self._state.measures["product_error"] = (off / whole) ** 0.5
        return before - after

    def _modules(self) -> list[tuple[str, dict[str, Place]]]:
        """Every adapted module, and where the factors of it that are in P stand, by segment."""
        found: dict[str, dict[str, Place]] = {}
        for place in self._state.layout.entries:
            if place.segment in ("A", "B"):
                found.setdefault(place.layer, {})[place.segment] = place
        return list(found.items())

    def _stack(self, layer: str, factors: dict[str, Place]) -> Stack:
        """One module's factors of all clients, laid out in memory so that flattening copies nothing."""
        weights = torch.tensor(self._weights, dtype=torch.float64, device=self._state.vector.device)
        a, b = (self._factors(factors, segment, at) for segment, at in (("A", 0), ("B", 1)))
        return Stack(layer, a, b.movedim(1, 0), weights / weights.sum())

    def _factors(self, factors: dict[str, Place], segment: str, at: int) -> Tensor:
        """One factor of all clients, float64, with the clients along dimension `at`; it may stand outside of P."""
        if segment in factors:
            place = factors[segment]
            own = [trained[place.start : place.stop].view(place.shape) for trained in self._trained]
            return torch.stack(own, dim=at).double()
        (other,) = factors.values()
        frozen = self._state.backbone.tensor(other.name.replace(f".lora_{other.segment}.", f".lora_{segment}."))
        return torch.stack([frozen.double()] * len(self._trained), dim=at)

    def _started(self, lora_rank: int) -> Tensor:
        """Where a client of this rank started."""
        vector = self._state.vector.detach()
        if not lora_rank:
            return vector
        places = rank_slice(self._state.layout, lora_rank).to(vector.device)
        return torch.zeros_like(vector).index_copy(0, places, vector[places])


def weight_of(arrived: Arrived, weighting: Weighting | None) -> float:
    """An upload's weight in a mean: 1, its examples, or where no weighting is given what `server.weighting` says."""
    if weighting is None:
        return arrived.weight
    return float(arrived.examples) if weighting == "examples" else 1.0


def refusal_of(weighting: Weighting) -> str:
    """Why a mean of this weighting cannot be private (`Method.private_refusal`); nothing where it can."""
    return "" if weighting == "uniform" else "clients weigh by their examples: give --method.weighting uniform"


def assign(state: ServerState, update: Tensor) -> None:
    """Takes over what a `FactorAggregate` made."""
    state.vector.data.sub_(update)
