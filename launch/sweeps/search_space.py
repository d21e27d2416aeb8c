"""What a search may try: ranks and densities of FLASC, and the grids that run beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fedsim.errors import unknown_name
from fedsim.options import require

DENSITY_KEYS = {"FLASC": "method.upload_density", "SparseAdapter": "method.density"}
"""The key that a method's density is. Adapter LTH prunes what it does not keep, and LoRA is dense."""


@dataclass(frozen=True)
class Configuration:
    """What is tuned.

    Attributes:
        method: by name.
        lora_rank: 1 or more.
        density: in (0, 1]; of AdapterLTH what each pruning keeps of what is left.
    """

    method: str
    lora_rank: int
    density: float

    def __str__(self) -> str:
        return f"{self.method}, rank {self.lora_rank}, density {self.density:g}"

    @property
    def keys(self) -> dict[str, Any]:
        """As keys of a run."""
        keys: dict[str, Any] = {"method": self.method, "method.lora_rank": self.lora_rank}
        if self.method == "AdapterLTH":
            return {**keys, "method.prune_fraction": round(1 - self.density, 12)}
        name = DENSITY_KEYS.get(self.method)
        return {**keys, name: self.density} if name else keys


GRIDS = ("rank_grid", "flasc_grid", "sparse_adapter_grid", "adapter_lth_grid")
"""What the search is set against in Figure 7."""


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, and how.

    Attributes:
        ranks: LoRA ranks, two or more.
        densities: of FLASC's uploads and of SparseAdapter, in (0, 1].
        lth_densities: what each pruning of Adapter LTH keeps, in (0, 1]. The paper does not print Figure 7's; these are
            Appendix B.4's.
        against: grids to run beside the search, over the same ranks.
        halving: of those that are tried at once, one of so many goes on; None lets all go on.
    """

    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32)
    densities: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    lth_densities: Sequence[float] = (0.97, 0.98, 0.99)
    against: Sequence[str] = ()
    halving: int | None = None

    def __post_init__(self) -> None:
        ranks = _rising("ranks", self.ranks, "two or more whole numbers, as [1, 2, 4, 8]")
        require("ranks", [*ranks], len(ranks) >= 2, "two or more, as [1, 2, 4, 8]")
        require("ranks", ranks[0], ranks[0] >= 1 and all(isinstance(rank, int) for rank in ranks), "1 or more, whole")
        object.__setattr__(self, "ranks", ranks)
        for name in ("densities", "lth_densities"):
            values = _rising(name, getattr(self, name), "numbers in (0, 1], as [0.25, 0.5, 1.0]")
            require(name, [*values], bool(values) and 0 < values[0] <= values[-1] <= 1, "numbers in (0, 1]")
            object.__setattr__(self, name, tuple(map(float, values)))  # 1 and 1.0 would name two directories
        require("against", self.against, isinstance(self.against, list | tuple), f"a list of {', '.join(GRIDS)}")
        for name in self.against:
            if name not in GRIDS:
                raise unknown_name("grid", str(name), GRIDS)
        halves = self.halving is None or (isinstance(self.halving, int) and self.halving >= 2)
        require("halving", self.halving, halves, "2 or more, or null")

    def grids(self) -> dict[str, list[Configuration]]:
        """Lists what each grid that runs beside the search consists of: LoRA's ranks alone, or ranks by densities."""
        of_grid: dict[str, tuple[str, Sequence[float]]] = {
            "rank_grid": ("LoRA", [1.0]),
            "flasc_grid": ("FLASC", self.densities),
            "sparse_adapter_grid": ("SparseAdapter", self.densities),
            "adapter_lth_grid": ("AdapterLTH", self.lth_densities),
        }
        asked = [(name, *of_grid[name]) for name in self.against]
        return {
            name: [Configuration(method, rank, density) for rank in self.ranks for density in densities]
            for name, method, densities in asked
        }


def space_of(found: Mapping[Any, Any]) -> SearchSpace:
    """Makes a search space of what stands under search: in a file.

    Raises:
        ConfigurationError: an entry is unknown, or out of its range.
    """
    known = [field.name for field in fields(SearchSpace)]
    for entry in found:
        if entry not in known:
            raise unknown_name("entry of search:", str(entry), known)
    return SearchSpace(**found)


def _rising(name: str, given: Any, expected: str) -> tuple[Any, ...]:
    """Puts numbers in order, each once."""
    numbers = isinstance(given, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in given
    )
    require(name, given, numbers, expected)
    return tuple(sorted({*given}))
