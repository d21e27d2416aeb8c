"""SPDST: a mask on the backbone that is taken after one dense round and then stays.

Babakniya et al. 2023, "Revisiting Sparsity Hunting in Federated Learning: Why does Sparsity Consensus Matter?", in the
version of Kuo et al., "FLASC: Federated LoRA with Sparse Communication", Section 3 and Appendix A, Algorithm 6. Down:
all of P once, then P * M, and once M (a seed and a count per tensor where it is random). Up: the update's values within
M.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import pruning
from fedsim.method import Download, Method, Plan, ServerState, Shared
from fedsim.parameters import Layout
from fedsim.seeding import Purpose, generator
from fedsim.sparse import as_fraction, require_density

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class SPDST(Method):
    """Prunes the backbone once, after a dense round, for good; the values that are left travel.

    Source: Kuo et al., FLASC, Algorithm 6 ("if SPDST"), after Babakniya et al. 2023.

    Line 20 applies the mask to P as it was before the dense round; here training goes on from P' unless `go_on_from`
    says otherwise. The listing masks over all of P (`mask_scope=global`).

    The original trains sparse on some clients, averages the density of each layer over them, draws a random mask with
    those densities, each entry on its own, and starts from the initial model. `random_mask=true` with
    `go_on_from=initial` is that with the paper's dense round in place of the clients' sparse ones: a tensor's density
    is its share of the k largest |P'|, and exactly so many of its entries are drawn.

    Args:
        density: d, fraction of P that is kept, in (0, 1]. Table 1 has 0.75 and 0.5.
        random_mask: whether the entries of each tensor are drawn at random, as many as are among the largest.
        parameters: what P is: the backbone; or LoRA, which but for the random mask makes it SparseAdapter.
        mask_scope: choose within each segment (the backbone, the head, A, B); or over all of P.
        go_on_from: what the mask is applied to, P after the dense round or P as it was before it.
    """

    density: float = 0.75
    random_mask: bool = False
    parameters: Literal["backbone", "lora"] = "backbone"
    mask_scope: pruning.MaskScope = "segment"
    go_on_from: pruning.Origin = "tuned"

    def __post_init__(self) -> None:
        require_density("method.density", self.density)

    @property
    def label(self) -> str:
        """SPDST and its density."""
        what = (", random mask" if self.random_mask else "") + (", LoRA" if self.parameters == "lora" else "")
        return f"SPDST {as_fraction(self.density)}{what}{pruning.scope_in_label(self.mask_scope)}"

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """P is the backbone and its head (line 6)."""
        from fedsim.adapters import add_zero_adapter, unfreeze_backbone

        if self.parameters == "lora":
            return super().setup(backbone, seed)
        return unfreeze_backbone(add_zero_adapter(backbone, seed))

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """After the dense round, once: M = TopKMask(|P'|, d), P = P * M, a fresh Adam (lines 15 to 21)."""
        pruning.prune_once(state, self._mask, self.go_on_from, round)
        return pruning.known_mask(state)

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Who knows the mask is told nothing of it."""
        return Plan(since=pruning.mask_round(state, client))

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """M: what travels both ways, and what trains (the M of TrainStep, line 28)."""
        return shared.tensors.get("kept")

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """P' = P, which is sparse already (line 27), and M for who does not know it."""
        whole = pruning.download_kept(state, shared, plan)
        if not (self.random_mask and whole.beside):
            return whole
        counts = entries_per_tensor(state.layout, shared.tensors["kept"])
        return Download(whole.values, (np.array(state.seed, "<u8").tobytes() + counts.astype("<u4").tobytes(),))

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
        """TopKMask(S, d) with S = |P'| (lines 17 and 18), or as many entries of each tensor at random."""
        kept = pruning.largest(state.vector.detach(), self.density, state.layout, self.mask_scope)
        if not self.random_mask:
            return kept
        drawn = random_entries(state.layout, entries_per_tensor(state.layout, kept), state.seed)
        return drawn.to(kept.device)


def entries_per_tensor(layout: Layout, kept: Tensor) -> np.ndarray:
    """How many entries of each tensor of P a mask keeps: int64, one for each of `layout.entries`."""
    edges = torch.tensor([0, *(place.stop for place in layout.entries)], device=kept.device)
    return np.diff(torch.searchsorted(kept, edges).cpu().numpy())


def random_entries(layout: Layout, counts: np.ndarray, seed: int) -> Tensor:
    """Draws so many entries of each tensor of P: int64 (k,), rising; all that a client needs to draw the same."""
    random = generator(seed, Purpose.METHOD)
    parts = [
        place.start + np.sort(random.choice(place.stop - place.start, count, replace=False, shuffle=False))
        for place, count in zip(layout.entries, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts))
