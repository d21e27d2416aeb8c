"""SparseAdapter: a mask on LoRA that is taken after one dense round and then stays.

He et al. 2022, as Kuo et al. take it to federated learning: "FLASC: Federated LoRA with Sparse Communication", Section
3 and Appendix A, Algorithm 6. Down: all of P once, then P * M, and once M. Up: the update's values within M.
"""

from dataclasses import dataclass

from torch import Tensor

from fedsim import pruning
from fedsim.method import Download, Method, Plan, ServerState, Shared
from fedsim.sparse import as_fraction, require_density


@dataclass
class SparseAdapter(Method):
    """Prunes LoRA once, after a dense round, for good; the values that are left travel.

    Source: Kuo et al., FLASC, Algorithm 6, after He et al. 2022.

    The score is |P'| after one round of dense training, as the paper has it for SPDST (line 17): B is zero at first,
    so that SNIP's score (line 11) would remove all of it. The dense round counts as a round, and its bytes are counted.

    Line 20 applies the mask to P as it was before that round, in which B is zero; here training goes on from P' unless
    `go_on_from` says otherwise. The listing masks over all of P (`mask_scope=global`): after one step of Adam all of B
    has about the size of the server's rate, and such a mask may hold none of it. The published code fixes its mask
    after one round too and goes on from P' with Adam's moments (`fresh_optimizer=false`).

    Args:
        density: d, fraction of P that is kept, in (0, 1].
        mask_scope: choose within A, within B and within the head; or over all of P.
        go_on_from: what the mask is applied to, P after the dense round or P as it was before it.
        fresh_optimizer: whether the server's optimiser starts anew with the mask (line 21).
    """

    density: float = 0.25
    mask_scope: pruning.MaskScope = "segment"
    go_on_from: pruning.Origin = "tuned"
    fresh_optimizer: bool = True

    def __post_init__(self) -> None:
        require_density("method.density", self.density)

    @property
    def label(self) -> str:
        """SparseAdapter and its density."""
        return f"SparseAdapter {as_fraction(self.density)}{pruning.scope_in_label(self.mask_scope)}"

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """After the dense round, once: M = TopKMask(|P'|, d), P = P * M, a fresh Adam (lines 15 to 21)."""
        pruning.prune_once(state, self._mask, self.go_on_from, round, self.fresh_optimizer)
        return pruning.known_mask(state)

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Who knows the mask is told nothing of it."""
        return Plan(since=pruning.mask_round(state, client))

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """M: what travels both ways, and what trains (the M of TrainStep, line 28)."""
        return shared.tensors.get("kept")

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """P' = P, which is sparse already (line 27), and M for who does not know it."""
        return pruning.download_kept(state, shared, plan)

    def step(self, state: ServerState, update: Tensor) -> None:
        """A step of FedAdam (lines 28 and 29), after which pruned entries are still zero."""
        super().step(state, update)
        pruning.zero_pruned(state)

    def known(self, state: ServerState) -> dict[str, Tensor]:
        """M, within which clients that are evaluated after training on stay too."""
        return {"kept": self._mask(state)} if pruning.awaits_mask(state) else pruning.known_mask(state)

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """P as the next client downloads it: after the dense round it is pruned."""
        return {"masked": pruning.with_mask_taken(state, self._mask, self.go_on_from)}

    def _mask(self, state: ServerState) -> Tensor:
        """TopKMask(S, d) with S = |P'| (lines 17 and 18)."""
        return pruning.largest(state.vector.detach(), self.density, state.layout, self.mask_scope)
