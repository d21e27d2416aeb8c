"""FederatedSelect: every round the clients train a part of P of that round's choosing.

Charles et al. 2022, as in Kuo et al., "FLASC: Federated LoRA with Sparse Communication", Section 3, Figure 5 and
Appendix A, Algorithm 6. Down: the k largest |P|, with their indices. Up: the update's values at the same places.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fedsim import pruning
from fedsim.method import Download, Method, Plan, ServerState, Shared
from fedsim.options import require
from fedsim.sparse import SparseVector, as_fraction, require_density

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class FederatedSelect(Method):
    """Sends and trains each round's largest entries; their update's values go up, the server keeps all of P.

    Source: Kuo et al., FLASC, Algorithm 6 ("if Federated Select"), after Charles et al. 2022.

    The mask is a new one every round, and the download holds all of its indices, also for a client that took part in
    the round before: few do where the cohort is a small part of the clients.

    On LoRA it begins with a dense round, as B is zero before it. The listing knows none (`dense_rounds=0`), and masks
    over all of P (`mask_scope=global`): after a step of Adam all of B has about the size of the server's rate, and such
    a mask may hold none of it. The optimiser steps every entry, also by momentum alone where no client trained it
    (line 29). The main view is P as the next client would download it.

    Args:
        density: d, fraction of P that is sent and trained, in (0, 1]. Table 1 has 0.75 and 0.5, on the backbone.
        parameters: what P is: LoRA (Figure 5), or the backbone (Table 1).
        mask_scope: choose within each segment (A, B, the head, the backbone); or over all of P.
        dense_rounds: how many steps the server takes on all of P before it masks, 0 or more; on LoRA alone.
    """

    density: float = 0.25
    parameters: Literal["lora", "backbone"] = "lora"
    mask_scope: pruning.MaskScope = "segment"
    dense_rounds: int = 1

    def __post_init__(self) -> None:
        require_density("method.density", self.density)
        require("method.dense_rounds", self.dense_rounds, self.dense_rounds >= 0, "0 or more")

    @property
    def label(self) -> str:
        """Federated Select and its density."""
        what = ", backbone" if self.parameters == "backbone" else ""
        return f"Federated Select {as_fraction(self.density)}{what}{pruning.scope_in_label(self.mask_scope)}"

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """P is LoRA and the head, or the backbone and the head (lines 5 and 6)."""
        from fedsim.adapters import add_zero_adapter, unfreeze_backbone

        if self.parameters == "lora":
            return super().setup(backbone, seed)
        return unfreeze_backbone(add_zero_adapter(backbone, seed))

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """M = TopKMask(|P|, d) (line 24)."""
        known = self.known(state)
        if known:
            pruning.note_dead_adapter(state, known["kept"])
        return known

    def known(self, state: ServerState) -> dict[str, Tensor]:
        """M of P as it is now, within which clients that are evaluated after training on stay too."""
        kept = self._mask(state)
        return {} if kept is None else {"kept": kept}

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """M: what trains (the M of TrainStep, line 28) and goes up; both ends have it once the download is there."""
        return shared.tensors.get("kept")

    def download_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """None: clients learn the mask from the download itself."""
        return None

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """P' = P * M (line 25)."""
        vector = state.vector.detach()
        if "kept" not in shared.tensors:
            return Download(SparseVector.dense(vector))
        return Download(SparseVector.at(vector, shared.tensors["kept"]))

    def step(self, state: ServerState, update: Tensor) -> None:
        """A step of FedAdam on all of P (line 29)."""
        super().step(state, update)
        state.tensors["steps"] = state.tensors.get("steps", torch.tensor(0)) + 1

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """P as the next client would download it, and the whole P."""
        whole, kept = state.vector.detach(), self._mask(state)
        masked = whole if kept is None else SparseVector.at(whole, kept).to_dense()
        return {"masked": masked, "full": whole}

    def _mask(self, state: ServerState) -> Tensor | None:
        """What the next client trains; None before the dense rounds are over."""
        if self.parameters == "lora" and int(state.tensors.get("steps", torch.tensor(0))) < self.dense_rounds:
            return None
        return pruning.largest(state.vector.detach(), self.density, state.layout, self.mask_scope)
