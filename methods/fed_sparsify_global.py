"""FedSparsifyGlobal: iterative magnitude pruning of the whole backbone.

Stripelis et al. 2022, "Federated Progressive Sparsification (Purge, Merge, Tune)+", as in Kuo et al., "FLASC: Federated
LoRA with Sparse Communication", Section 3 and Appendix A, Algorithm 5. Down: P * M, and what of M the client does not
know. Up: the update's values within M.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from fedsim import pruning
from fedsim.method import Download, Method, Plan, ServerState, Shared
from fedsim.options import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class FedSparsifyGlobal(Method):
    """Prunes the backbone's smallest weights every few rounds, for good; the values that are left travel.

    Source: Kuo et al., FLASC, Algorithm 5 ("else"), after Stripelis et al. 2022.

    The listing prunes at the start of a round, Stripelis et al. after the aggregation of the round before, which comes
    to the same: what is evaluated and exported is P as the next client downloads it, and P as line 14 leaves it stands
    beside it. Their mean is weighted by examples (`server.weighting`), their server takes the mean as it is
    (`server.optimizer` sgd of rate 1), and their threshold is one over all weights (`mask_scope=global`), as in the
    listing; by default the backbone and the head keep their share each, as in the other methods with masks.

    Args:
        prune_fraction: p of the iterative schedule, how much of what is left goes each time, in [0, 1). FLASC's paper
            prints neither p nor q; over 200 rounds with q = 1, 0.003 sends 75 % of what dense training would, and 0.008
            sends 50 %: the budgets of its Table 1.
        prune_every_rounds: q, at least 1.
        schedule: iterative, as in Algorithm 5; or cubic, as Stripelis et al. have it: after t rounds, t rounded down to
            a multiple of q, the sparsity is s_f - s_f (1 - t / T)^3.
        final_sparsity: s_f of the cubic schedule, the fraction that is removed in the end, in [0, 1).
        schedule_rounds: T of the cubic schedule, the round after which it prunes no more, at least 1.
        mask_scope: choose within the backbone and within the head; or over all of P.
    """

    lora_rank: int = field(init=False, default=1)
    lora_alpha: float = field(init=False, default=1.0)
    lora_dropout: float = field(init=False, default=0.0)
    lora_targets: str | list[str] = field(init=False, default="query")
    prune_fraction: float = 0.003
    prune_every_rounds: int = 1
    schedule: Literal["iterative", "cubic"] = "iterative"
    final_sparsity: float = 0.5
    schedule_rounds: int = 200
    mask_scope: pruning.MaskScope = "segment"

    def __post_init__(self) -> None:
        require("method.prune_fraction", self.prune_fraction, 0 <= self.prune_fraction < 1, "a number in [0, 1)")
        require("method.prune_every_rounds", self.prune_every_rounds, self.prune_every_rounds >= 1, "1 or more")
        require("method.final_sparsity", self.final_sparsity, 0 <= self.final_sparsity < 1, "a number in [0, 1)")
        require("method.schedule_rounds", self.schedule_rounds, self.schedule_rounds >= 1, "1 or more")

    @property
    def label(self) -> str:
        """FedSparsify-Global and its schedule."""
        what = f"{1 - self.prune_fraction:g}"
        if self.schedule == "cubic":
            what = f"sparsity {self.final_sparsity:g} in {self.schedule_rounds}"
        often = "" if self.prune_every_rounds == 1 else f" every {self.prune_every_rounds}"
        return f"FedSparsify-Global {what}{often}{pruning.scope_in_label(self.mask_scope)}"

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """P is the backbone and its head (line 5)."""
        from fedsim.adapters import add_zero_adapter, unfreeze_backbone

        return unfreeze_backbone(add_zero_adapter(backbone, seed))

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """M = TopKMask(|P|, d), P = P * M, and the next d (lines 9 to 12)."""
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
        if self.schedule == "cubic":
            return 1 - self._sparsity(round - 1)
        if round % self.prune_every_rounds:
            return None
        return pruning.iterative_density(round, self.prune_fraction, self.prune_every_rounds)

    def _sparsity(self, done: int) -> float:
        """What is removed after so many rounds: s_f + (s_i - s_f) (1 - t / T)^3 with s_i = 0 (Stripelis et al.)."""
        t = min(done // self.prune_every_rounds * self.prune_every_rounds, self.schedule_rounds)
        return self.final_sparsity - self.final_sparsity * (1 - t / self.schedule_rounds) ** 3
