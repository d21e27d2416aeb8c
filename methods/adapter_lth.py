"""AdapterLTH: iterative magnitude pruning of LoRA.

Wu and Chen 2022, as Kuo et al. take it to federated learning: "FLASC: Federated LoRA with Sparse Communication",
Section 3 and Appendix A, Algorithm 5. Down: P * M, and what of M the client does not know. Up: the update's values
within M.
"""

from dataclasses import dataclass

from torch import Tensor

from fedsim import pruning
from fedsim.method import Download, Method, Plan, ServerState, Shared
from fedsim.options import require


@dataclass
class AdapterLTH(Method):
    """Prunes LoRA's smallest entries every few rounds, for good; the values that are left travel.

    Source: Kuo et al., FLASC, Algorithm 5 ("if AdapterLTH"), after Wu and Chen 2022; no rewinding, as in Renda et al.
    2019.

    The listing prunes at the start of a round, the first time to d = 1. What is evaluated and exported is P as the next
    client downloads it, pruned already; P as line 14 leaves it stands beside it. The listing takes the k largest of all
    of P at once (`mask_scope=global`); by default each of A, B and the head keeps its share, as for SparseAdapter,
    whose B such a mask can freeze at zero. Line 11 says that P is pruned; here the moments of Adam are too, or they
    would bring entries back. The published code masks what is sent and keeps the server's other entries; here, as
    printed, they are removed.

    Args:
        prune_fraction: p, how much of what is left goes each time, in [0, 1). Appendix B.4 keeps 0.97, 0.98 and 0.99
            where there are 100, 200 and 400 rounds.
        prune_every_rounds: q, at least 1. Appendix B.4: 25 for FLAIR, 1 for all others.
        mask_scope: choose within A, within B and within the head; or over all of P.
    """

    prune_fraction: float = 0.02
    prune_every_rounds: int = 1
    mask_scope: pruning.MaskScope = "segment"

    def __post_init__(self) -> None:
        require("method.prune_fraction", self.prune_fraction, 0 <= self.prune_fraction < 1, "a number in [0, 1)")
        require("method.prune_every_rounds", self.prune_every_rounds, self.prune_every_rounds >= 1, "1 or more")

    @property
    def label(self) -> str:
        """Adapter LTH and what it keeps each time, as the paper writes it."""
        often = "" if self.prune_every_rounds == 1 else f" every {self.prune_every_rounds}"
        return f"Adapter LTH {1 - self.prune_fraction:g}{often}{pruning.scope_in_label(self.mask_scope)}"

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """M = TopKMask(|P|, d), P = P * M, d = d (1 - p), every q rounds (lines 9 to 12)."""
        density = self._density(round)
        if density is not None:
            pruning.prune_smallest(state, density, self.mask_scope, round)
        pruning.foresee(state, self._density(round + 1))
        return pruning.known_mask(state)

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Clients that hold the same mask share a download."""
        return Plan(since=pruning.mask_round(state, client))

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """M: what travels both ways, and what trains (the M of TrainStep, line 13)."""
        return shared.tensors.get("kept")

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """P, which is sparse already, and what is new of M."""
        return pruning.download_kept(state, shared, plan)

    def step(self, state: ServerState, update: Tensor) -> None:
        """A step of FedAdam (lines 13 and 14), after which pruned entries are still zero."""
        super().step(state, update)
        pruning.zero_pruned(state)

    def known(self, state: ServerState) -> dict[str, Tensor]:
        """The next round's M, within which clients that are evaluated after training on stay too."""
        return pruning.next_mask(state, self.mask_scope)

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """P as the next client downloads it, and P before it is pruned."""
        return pruning.as_next_downloaded(state, self.mask_scope)

    def _density(self, round: int) -> float | None:
        """What a round prunes to when it begins; None where it prunes nothing."""
        if round % self.prune_every_rounds:
            return None
        return pruning.iterative_density(round, self.prune_fraction, self.prune_every_rounds)
