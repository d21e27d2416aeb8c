"""HighestTierOnly: who cannot work at the server's rank is left out.

Kuo et al., FLASC, Section 4.4, "Highest tier only". Down and up: all of P, for the clients of the highest tier alone.
"""

from dataclasses import dataclass

from fedsim.measured import MeasuredMean
from fedsim.method import Aggregate, Method, Plan, ServerState, Shared
from fedsim.parameters import Layout
from fedsim.tiers import PAPERS_TIERS, Tiers


@dataclass
class HighestTierOnly(Method):
    """Drops sampled clients of lower tiers, who send nothing; all of P travels for the rest.

    Source: Kuo et al., FLASC, Section 4.4 and Table 3.

    The mean runs over the rest of the cohort. A cohort without any is a round without a step, and costs nothing.
    Clients that are evaluated after training on train the whole adapter, of whatever tier.

    Args:
        tiers: how many ranks there are among the clients, b_s; the highest is lora_rank. 3 where not
            given.
        tier_base: each tier's rank over the one below it, r_base; the largest that leaves the lowest tier a rank of at
            least 1 where not given.
    """

    sums_updates = True

    tiers: int | None = None
    tier_base: int | None = None

    def __post_init__(self) -> None:
        self._tiers = Tiers(PAPERS_TIERS if self.tiers is None else self.tiers, self.tier_base, self.lora_rank)

    @property
    def label(self) -> str:
        """Who is left, of how many tiers."""
        return f"Highest tier only, of {self._tiers.label}"

    def check(self, layout: Layout) -> None:
        """There must be ranks that clients could lack."""
        self._tiers.check(layout)

    def plan(self, state: ServerState, round: int, client: int) -> Plan | None:
        """Drops who is of a lower tier."""
        return Plan() if self._tiers.rank_of(client, state.seed) == self.lora_rank else None

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The mean over who is left."""
        return MeasuredMean(state)
