"""Systems heterogeneity: budgets by tier, and the slice of P that a client of a smaller LoRA rank works on.

Source: Kuo et al., FLASC, Section 4.4: client c of tier b_c, uniform over {1, ..., b_s}, has the rank r_base^(b_c - 1),
and the server r_s = r_base^(b_s - 1). Where r_s is no such power, tiers are counted down from it, rounded down:
r_s / r_base^(b_s - b_c). Truncation is HetLoRA's (Cho et al. 2024): the first rows of A and columns of B.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from fedsim.errors import ConfigurationError
from fedsim.parameters import Layout
from fedsim.seeding import Purpose, generator

PAPERS_TIERS = 3
"""b_s of the setting that Section 4.4 calls low; the other has 5."""


MOST_TIERS = 64
"""More would need a LoRA rank above 2**63, and 2**31 tiers minutes to say so."""


@dataclass(frozen=True)
class Tiers:
    """Which LoRA rank each client has.

    Args:
        count: b_s, how many tiers there are, at least 1.
        base: r_base, at least 2; None for the largest that leaves the lowest tier a rank of at least 1.
        lora_rank: of the server, r_s.

    Raises:
        ConfigurationError: a number is out of range, or the lowest tier would have no rank left.
    """

    count: int
    base: int | None
    lora_rank: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigurationError(f"method.tiers is {self.count}; expected 1 or more")
        if self.count > MOST_TIERS:
            raise ConfigurationError(f"method.tiers is {self.count}; expected at most {MOST_TIERS}")
        if self.base is not None and self.base < 2:
            raise ConfigurationError(f"method.tier_base is {self.base}; expected 2 or more")
        if self.count > 1 and self.lora_rank < (self.base or 2) ** (self.count - 1):
            needed = (self.base or 2) ** (self.count - 1)
            raise ConfigurationError(
                f"method.tiers {self.count} with method.tier_base {self.base or 2} needs a LoRA rank of {needed} at "
                f"the server, got {self.lora_rank}; give --method.lora_rank {needed}, or fewer tiers"
            )

    @cached_property
    def ranks(self) -> list[int]:
        """The rank of each tier, the lowest first."""
        base = self.base or self._largest_base()
        return [self.lora_rank // base ** (self.count - tier) for tier in range(1, self.count + 1)]

    def rank_of(self, client: int, seed: int) -> int:
        """The rank of a client: its tier is drawn uniformly, from the run's seed and its number alone."""
        if self.count == 1:
            return self.lora_rank
        return self.ranks[int(generator(seed, Purpose.TIER, client=client).integers(self.count))]

    @property
    def label(self) -> str:
        """How tables name the tiers."""
        return f"ranks {', '.join(map(str, self.ranks))}"

    def check(self, layout: Layout) -> None:
        """Raises a ConfigurationError where there is no adapter whose rank could be cut."""
        layout.require_pairs("method.tiers, the clients' ranks,")

    def _largest_base(self) -> int:
        base = 2
        while (base + 1) ** (self.count - 1) <= self.lora_rank and self.count > 1:
            base += 1
        return base


@lru_cache(maxsize=64)
def rank_slice(layout: Layout, lora_rank: int) -> Tensor:
    """The entries of P that a client of a smaller rank holds.

    Args:
        layout: of P.
        lora_rank: r_c, at least 1, at most that of the layout's factors.

    Returns:
        int64 (k,), rising: A's first r_c rows, B's first r_c columns, and everything that is no factor.
    """
    parts = []
    for entry in layout.entries:
        places = torch.arange(entry.start, entry.stop).view(entry.shape)
        if entry.segment == "A":
            places = places[:lora_rank]
        elif entry.segment == "B":
            places = places[:, :lora_rank]
        parts.append(places.reshape(-1))
    return torch.cat(parts)


def truncated(vector: Tensor, layout: Layout, lora_rank: int) -> Tensor:
    """What a client of a smaller rank holds of P, (P,): zero outside its slice."""
    places = rank_slice(layout, lora_rank).to(vector.device)
    return torch.zeros_like(vector).index_copy(0, places, vector[places])
