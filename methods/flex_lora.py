"""FlexLoRA: the mean of the products, cut to the server's rank by a singular value decomposition.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (arXiv
2402.11505). Down: the r_c leading rows of A and columns of B, for a client of rank r_c, and the head. Up: the same.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.factors import Combined, FactorAggregate, Stack, Weighting, assign
from fedsim.method import Aggregate, Method, Plan, ServerState, Shared
from fedsim.parameters import Layout
from fedsim.sparse import SparseVector
from fedsim.tiers import Tiers, rank_slice


@dataclass
class FlexLoRA(Method):
    """Cuts the mean of the products to its rank; all of P travels, or the ranks that a client has.

    Source: Bai et al. 2024, FlexLoRA (arXiv 2402.11505).

    As in the published code, all singular values go into B = U S, and A = V^T is orthonormal. The code makes D_out by
    D_in for it; here the stacked factors are decomposed, with the same result. It scales a client's product by alpha /
    r_c; here clients of every rank keep alpha / r of the server, so that a slice means the same on both sides.

    Args:
        weighting: of the clients in the mean: by their examples, as in the published code, or equal.
        tiers: how many LoRA ranks there are among the clients; everybody has the server's where not given.
        tier_base: each tier's rank over the one below it; the largest that leaves the lowest a rank of 1 where not
            given.
    """

    assigns: ClassVar[bool] = True
    keeps_basis: ClassVar[bool] = False

    weighting: Weighting = "examples"
    tiers: int | None = None
    tier_base: int | None = None

    def __post_init__(self) -> None:
        self._tiers = Tiers(1 if self.tiers is None else self.tiers, self.tier_base, self.lora_rank)

    @property
    def label(self) -> str:
        """FlexLoRA and its clients' ranks, where there are several."""
        return "FlexLoRA" if self._tiers.count == 1 else f"FlexLoRA {self._tiers.label}"

    def check(self, layout: Layout) -> None:
        """There must be factors to combine."""
        layout.require_pairs("FlexLoRA")

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Asks a client to work on as many ranks as its tier has."""
        return Plan(lora_rank=self._tiers.rank_of(client, state.seed) if self._tiers.count > 1 else 0)

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """The client's slice, both ways; as A and B are in the order of the singular values, the best of its rank."""
        return rank_slice(shared.layout, plan.lora_rank) if plan.lora_rank else None

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The mean of the products, cut to the server's rank."""
        return FactorAggregate(state, self.weighting, partial(truncated, lora_rank=self.lora_rank))

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the decomposition."""
        assign(state, update)

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """All of P, and what the lower tiers have of it."""
        whole = state.vector.detach()
        lower = {f"rank{r}": rank_slice(state.layout, r).to(whole.device) for r in reversed(self._tiers.ranks[:-1])}
        return {"full": whole} | {name: SparseVector.at(whole, at).to_dense() for name, at in lower.items()}


def truncated(stack: Stack, lora_rank: int) -> Combined:
    """The truncated singular value decomposition of the mean of the products: B = U S, A = V^T.

    With the stacked factors' product L R^T and R = Q T, the columns of L T^T hold the same singular values and left
    vectors. Its right ones come from the eigenvectors W of its Gram matrix, in float64; V = Q W. A is orthonormal, and
    B = (L T^T) W is the exact projection, so an error in W counts only in the second order.

    Args:
        stack: the clients' factors.
        lora_rank: of the result, at most that of the factors.

    Returns:
        A and B; rows and columns of zeros where the product has no more singular values.
    """
    right, left = stack.concatenated()
    q, t = torch.linalg.qr(right.T)  # (D_in, K) and (K, C R), K the smaller of D_in and C R
    core = left @ t.T
    _, vectors = torch.linalg.eigh(core.T @ core)  # values rise
    w = vectors[:, -lora_rank:].flip(1)
    missing = lora_rank - w.shape[1]
    w = torch.nn.functional.pad(w, (0, missing))
    return Combined((q @ w).T, core @ w)
