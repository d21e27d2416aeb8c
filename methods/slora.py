"""SLoRA: a while of sparse full fine-tuning, then LoRA from the best low rank of what it changed.

Babakniya et al. 2023, "SLoRA: Federated Parameter Efficient Fine-Tuning of Language Models" (arXiv 2308.06522), as in
Kuo et al., FLASC, Section 4.3 and Appendix A. Stage one, both ways: the backbone's weights under a mask that a seed
gives, and the head. Stage two: A, B and the head.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.method import Arrangement, Download, Method, Plan, ServerState, Shared
from fedsim.options import require
from fedsim.parameters import Layout
from fedsim.seeding import Purpose, torch_seed
from fedsim.sparse import as_fraction, kept_entries, require_density
from fedsim.state import ClientState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class SLoRA(Method):
    """Fine-tunes and sends a tenth of the backbone first, then LoRA from the truncated SVD of its change.

    Source: Babakniya et al. 2023 (arXiv 2308.06522); in Kuo et al., FLASC, Section 4.3, Figure 8 and Appendix B.4.

    Stage two starts from the backbone as it was before stage one: a module that LoRA adapts gets B A = the best rank r
    of its change, B = U S / scale and A = V'; what stage one did to any other weight is lost; the head goes on. The
    server optimiser starts anew. One mask serves all clients and rounds; who takes part for the first time pays 8 bytes
    for its seed. FLASC's Figure 8 calls density 1 FLoRA.

    Appendix B.4 gives "SLoRA Stage 1 LR: 1e-3" without saying whose. It is the server's here, as the client's is 1e-3
    in that experiment anyway. A run that ends within stage one leaves a fine-tuned backbone under an adapter of zero.

    Args:
        stage_one_density: fraction of the backbone's weights that stage one trains, in (0, 1]; the head trains whole.
        stage_one_rounds: how many rounds stage one has, at least 1: a quarter of the run in the paper.
        stage_one_lr: the server's learning rate in stage one, in place of server.lr.
    """

    stage_one_density: float = 0.1
    stage_one_rounds: int = 50
    stage_one_lr: float = 1e-3

    def __post_init__(self) -> None:
        require_density("method.stage_one_density", self.stage_one_density)
        require(
            "method.stage_one_rounds", self.stage_one_rounds, self.stage_one_rounds >= 1, "1 or more; LoRA has none"
        )
        require("method.stage_one_lr", self.stage_one_lr, self.stage_one_lr > 0, "a number above 0")

    @property
    def label(self) -> str:
        """SLoRA and the density of stage one."""
        dense = self.stage_one_density == 1
        return f"SLoRA, stage one {'at full rank' if dense else as_fraction(self.stage_one_density)}"

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """Adapts the backbone and leaves all of it to train; the stages choose."""
        from fedsim.adapters import unfreeze_backbone

        return unfreeze_backbone(super().setup(backbone, seed))

    def check(self, layout: Layout) -> None:
        """Stage one must train what the SVD is taken of."""
        layout.require_pairs("SLoRA")

    def arrange(self, arrangement: Arrangement) -> Arrangement:
        """As it was, with a word where the run ends before stage two."""
        if self.stage_one_rounds < arrangement.run.rounds:
            return arrangement
        note = (
            f"SLoRA's stage one has {self.stage_one_rounds} of {arrangement.run.rounds} rounds, so there is no LoRA:"
            " give a smaller method.stage_one_rounds, a quarter of the rounds in the paper"
        )
        return replace(arrangement, notes=(*arrangement.notes, note))

    def segments(self, round: int) -> Collection[str]:
        """The backbone and the head first, then the adapter and the head."""
        return ("backbone", "head") if round <= self.stage_one_rounds else ("A", "B", "head")

    def begin_stage(self, before: ServerState, after: ServerState) -> None:
        """Turns what stage one changed into LoRA's factors, and keeps the head."""
        trained, drawn = (before.layout.views(v.detach()) for v in (before.vector, before.initial))
        new = after.layout.views(after.vector.detach())
        kept, whole = 0.0, 0.0
        for pair in after.layout.pairs:
            name = f"{pair.layer}.base_layer.weight"
            change = before.backbone.oriented(pair.layer, (trained[name] - drawn[name]).double())
            left, sizes, right = torch.linalg.svd(change, full_matrices=False)
            rank = min(self.lora_rank, len(sizes))
            new[pair.a.name][:rank] = right[:rank]
            new[pair.b.name][:, :rank] = left[:, :rank] * sizes[:rank] / self.scale
            kept, whole = kept + float(sizes[:rank].square().sum()), whole + float(sizes.square().sum())
        for entry in after.layout.entries:
            if entry.segment == "head":
                new[entry.name].copy_(trained[entry.name])
        after.notes.append(
            f"stage two: rank {self.lora_rank} holds {kept / (whole or 1):.1%} of the adapted weights' change"
        )

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Tells apart who has the seed of the mask already."""
        return Plan(since=min(1, state.client(client).round)) if self._masks(state.layout) else Plan()

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """In stage one the masked weights and the head, both ways."""
        return self._mask(shared.layout, shared.seed) if self._masks(shared.layout) else None

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """P, of which the support travels, and for newcomers to stage one the seed of its mask."""
        news = self._masks(state.layout) and not plan.since
        seed = _mask_seed(shared.seed).to_bytes(8, "little")
        return Download(super().download(state, shared, plan).values, (seed,) if news else ())

    def start(self, shared: Shared, received: Download, client: ClientState) -> Tensor:
        """What was sent, in the backbone that every client has."""
        sent = received.values
        return sent.values if sent.indices is None else shared.initial.index_copy(0, sent.indices, sent.values)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Steps with the stage's own rate; what the mask leaves out stays as it was, under weight decay too."""
        if "backbone" in state.layout.segments():
            for group in state.optimizer.param_groups:
                group["lr"] = self.stage_one_lr
        super().step(state, update)
        if self._masks(state.layout):
            places = self._mask(state.layout, state.seed).to(state.vector.device)
            moved = state.vector.detach()[places]
            state.vector.data.copy_(state.initial).index_copy_(0, places, moved)

    def _masks(self, layout: Layout) -> bool:
        return self.stage_one_density < 1 and "backbone" in layout.segments()

    def _mask(self, layout: Layout, seed: int) -> Tensor:
        return stage_one_mask(layout, self.stage_one_density, _mask_seed(seed))


@lru_cache(maxsize=1)
def stage_one_mask(layout: Layout, density: float, seed: int) -> Tensor:
    """The weights that stage one trains: int64 (k,), rising; a draw of the backbone's, and the whole head."""
    backbone = layout.where(["backbone"]).numpy()
    kept = kept_entries(density, len(backbone))
    drawn = np.random.default_rng(seed).choice(backbone, kept, replace=False, shuffle=False)
    return torch.cat([torch.from_numpy(drawn), layout.where(["head"])]).sort().values


def _mask_seed(seed: int) -> int:
    return torch_seed(seed, Purpose.METHOD)
