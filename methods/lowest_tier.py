"""LowestTier: everybody works at the rank of the weakest clients.

Kuo et al., FLASC, Section 4.4, "All lowest tier". Down and up: the first rows of A and columns of B that the lowest
tier has, and the head.
"""

from dataclasses import dataclass

from torch import Tensor

from fedsim.measured import MeasuredMean
from fedsim.method import Aggregate, Method, Plan, ServerState, Shared
from fedsim.parameters import Layout
from fedsim.tiers import PAPERS_TIERS, Tiers, rank_slice, truncated


@dataclass
class LowestTier(Method):
    """Gives every client the lowest tier's rank, which is all that travels.

    Source: Kuo et al., FLASC, Section 4.4 and Table 3.

    It is HetLoRA with everybody in the first tier: a slice of the server's adapter, under its scale alpha / r_s. The
    paper says "LoRA rank 1" and leaves the scale open; --method LoRA --method.lora_rank 1 gives alpha / 1.

    Args:
        tiers: how many ranks there would be among the clients, b_s; the highest is lora_rank. 3 where not
            given.
        tier_base: each tier's rank over the one below it, r_base; the largest that leaves the lowest tier a rank of at
            least 1 where not given.
    """

    sums_updates = True

    tiers: int | None = None
    tier_base: int | None = None

    def __post_init__(self) -> None:
        self._rank = Tiers(PAPERS_TIERS if self.tiers is None else self.tiers, self.tier_base, self.lora_rank).ranks[0]

    @property
    def label(self) -> str:
        """All at the rank that they have."""
        return f"All lowest tier, rank {self._rank}"

    def check(self, layout: Layout) -> None:
        """There must be ranks to cut."""
        Tiers(PAPERS_TIERS if self.tiers is None else self.tiers, self.tier_base, self.lora_rank).check(layout)

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """The lowest rank for everybody."""
        return Plan(lora_rank=self._rank)

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor:
        """The lowest tier's slice, both ways."""
        return rank_slice(shared.layout, self._rank)

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The mean of the slices."""
        return MeasuredMean(state)

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """What every client holds; beyond it A is as it was drawn, and B is zero."""
        return {"lowest": truncated(state.vector.detach(), state.layout, self._rank)}
