"""HetLoRA: clients of smaller ranks work on the first ranks of the server's adapter.

Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models" (arXiv 2401.06432), as in
Kuo et al., FLASC, Section 4.4. Down and up: the first r_c rows of A and columns of B, and the head. Both ends know a
client's rank, so that values travel and no index.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from fedsim.measured import MeasuredMean
from fedsim.method import Aggregate, Arrived, ClientJob, Method, Penalty, Plan, ServerState, Shared, Upload
from fedsim.options import require
from fedsim.parameters import Layout
from fedsim.tiers import PAPERS_TIERS, Tiers, rank_slice, truncated

RANK = "lora_rank"
"""Under this name a client keeps its rank once it may prune itself."""


@dataclass
class HetLoRA(Method):
    """Truncates the adapter to each client's rank, which is all that travels, and pads the mean with zeros.

    Source: Cho et al. 2024 (arXiv 2401.06432); ranks by tier and FedAdam as in Kuo et al., FLASC, Section 4.4.

    The product keeps the server's scale alpha / r_s at every rank. As in FLASC's comparison the mean has the weights
    that `server.weighting` gives, zeros included, and self-pruning is off. A client that prunes itself still sends the
    slice of the rank that it received, as both ends know that one, and with it its new rank in 2 bytes; from its next
    round on both work on the smaller slice. A client prunes itself where the penalty's sum, over all modules, came out
    smaller than that of its download.

    Args:
        tiers: how many ranks there are among the clients, b_s; the highest is lora_rank. 3 where not
            given.
        tier_base: each tier's rank over the one below it, r_base; the largest that leaves the lowest tier a rank of at
            least 1 where not given: 4 for 3 tiers and 2 for 5 at rank 16, the paper's.
        aggregation: uniform takes the server's weights; sparsity weighs each client by the Frobenius norm of the
            product B_c A_c that it trained, over all modules together, head included (HetLoRA's own; server.weighting
            has no say then).
        rank_decay: gamma, in (0, 1]; below 1 a client drops to rank floor(gamma r_c), at least 1, where its tail
            shrank.
        tail_penalty: lambda, 0 or more: added to the loss, times the sum over modules of ||B[:, g:]|| ||A[g:, :]||
            with g = floor(gamma r_c).
    """

    tiers: int | None = None
    tier_base: int | None = None
    aggregation: Literal["uniform", "sparsity"] = "uniform"
    rank_decay: float = 1.0
    tail_penalty: float = 0.0

    def __post_init__(self) -> None:
        self._tiers = Tiers(PAPERS_TIERS if self.tiers is None else self.tiers, self.tier_base, self.lora_rank)
        decay, penalty = self.rank_decay, self.tail_penalty
        require("method.rank_decay", decay, 0 < decay <= 1, "a number in (0, 1]; 1 prunes nothing")
        tail = "0 or more, and 0 at a method.rank_decay of 1, which leaves no tail: give --method.rank_decay 0.99"
        require("method.tail_penalty", penalty, penalty == 0 or (penalty > 0 and decay < 1), tail)

    @property
    def label(self) -> str:
        """HetLoRA, its ranks, and what is not as in FLASC's comparison."""
        pruned = f", pruned by {self.rank_decay:g}" if self.rank_decay < 1 else ""
        return f"HetLoRA {self._tiers.label}{', by sparsity' if self.aggregation == 'sparsity' else ''}{pruned}"

    def check(self, layout: Layout) -> None:
        """There must be ranks to cut."""
        self._tiers.check(layout)

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """The client's rank: its tier's, or what it pruned itself to."""
        own = state.client(client).tensors.get(RANK)
        return Plan(lora_rank=self._tiers.rank_of(client, state.seed) if own is None else int(own))

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """The client's slice, both ways."""
        return None if plan.lora_rank == self.lora_rank else rank_slice(shared.layout, plan.lora_rank)

    def could_upload(self, shared: Shared) -> None:
        """All of P: some client has the highest rank, sampled or not."""
        return None

    def begin(self, job: ClientJob) -> ClientJob:
        """With what the penalty needs."""
        return replace(job, penalty_tensors=self._tail(job)) if self.rank_decay < 1 else job

    def penalty(self) -> Penalty | None:
        """lambda times the size of the tail."""
        if not self.tail_penalty:
            return None
        return lambda vector, reference, tensors: self.tail_penalty * tail_size(vector, tensors)

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        """The update of the slice; with self-pruning the client's rank too, lower where its tail shrank."""
        upload, rank = super().upload(job, trained), job.plan.lora_rank
        if self.rank_decay == 1:
            return upload
        tail = self._tail(job)
        if tail_size(trained, tail) < tail_size(job.start, tail):
            rank = self._kept(rank)
        return replace(upload, beside=(rank.to_bytes(2, "little"),), state={RANK: torch.tensor(rank)})

    @property
    def private_refusal(self) -> str:
        """Weights by what a client trained; the uniform mean is a plain sum."""
        if self.aggregation == "uniform":
            return ""
        return "clients weigh by the norm of what they trained: give --method.aggregation uniform"

    @property
    def sends_by_history(self) -> bool:
        """A client that prunes itself sends less from its next round on."""
        return self.rank_decay < 1

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The mean of the slices, padded with zeros."""
        return MeasuredMean(state, partial(product_norm, state) if self.aggregation == "sparsity" else None)

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """The server's P, and what each lower tier holds of it, the highest first."""
        whole = state.vector.detach()
        lower = reversed(self._tiers.ranks[:-1])
        return {"full": whole, **{f"rank{rank}": truncated(whole, state.layout, rank) for rank in lower}}

    def _kept(self, rank: int) -> int:
        """g, the rank that is left when the tail is cut off."""
        return max(1, math.floor(self.rank_decay * rank + 1e-9))

    def _tail(self, job: ClientJob) -> dict[str, Tensor]:
        rank = job.plan.lora_rank
        return {name: t.to(job.start.device) for name, t in _tail_of(job.layout, self._kept(rank), rank).items()}


def product_norm(state: ServerState, arrived: Arrived) -> float:
    """||B_c A_c||_F of what a client trained, over all modules, by the factors' Gram matrices."""
    started = truncated(state.vector.detach(), state.layout, arrived.plan.lora_rank)
    views = state.layout.views((started - arrived.update.to_dense()).double())
    factors = [(views[pair.a.name], views[pair.b.name]) for pair in state.layout.pairs]
    squared = sum(float(((b.T @ b) * (a @ a.T)).sum()) for a, b in factors)
    return math.sqrt(max(squared, 0.0))  # rounding can leave it below zero


def tail_size(vector: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The sum over modules of ||B[:, g:]||_F ||A[g:, :]||_F, of P under the tensors that `_tail_of` makes."""
    squares = tensors["zeros"].to(vector.dtype).index_add(0, tensors["factor"], (vector * tensors["tail"]).square())
    # The root has no gradient at zero, where B starts; a tail of zeros pulls at nothing.
    norms = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
    return (norms[0::2] * norms[1::2]).sum()


@lru_cache(maxsize=64)
def _tail_of(layout: Layout, kept: int, lora_rank: int) -> dict[str, Tensor]:
    """Where a client's tail is: (P,) ones in it, (P,) the number of each entry's factor, and a zero for each factor."""
    tail = torch.zeros(layout.length)
    tail[rank_slice(layout, lora_rank)] = 1
    tail[rank_slice(layout, kept)] = 0
    factor = torch.zeros(layout.length, dtype=torch.int64)
    places = [place for pair in layout.pairs for place in (pair.a, pair.b)]
    for number, place in enumerate(places):
        factor[place.start : place.stop] = number
    return {"tail": tail, "factor": factor, "zeros": torch.zeros(len(places))}
