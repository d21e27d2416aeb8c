"""FLASC: dense local training, sparse communication.

Kuo et al., "FLASC: Federated LoRA with Sparse Communication", Algorithm 1. Down: the k largest |P| (lines 5 and 10).
The client trains all of P (lines 12 to 15). Up: the k largest of its update (lines 16 to 18). With tiers (Section 4.4)
k is the client's own.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.method import ClientJob, Download, Method, Plan, ServerState, Shared, Upload
from fedsim.parameters import Layout
from fedsim.sparse import (
    SparseVector,
    as_fraction,
    density_of,
    kept_entries,
    require_density,
    topk_indices,
    topk_per_range,
)
from fedsim.tiers import Tiers, rank_slice

BEFORE = "download_mask."
"""Under this and a view's name the server keeps the mask that its clients downloaded this round."""


@dataclass
class FLASC(Method):
    """Keeps only the largest entries of what travels; freezes nothing.

    Source: Kuo et al., FLASC, Algorithm 1.

    The published code evaluates the new P under the mask from before the step; here the main view is P as the next
    client would download it, unless `evaluate_before_step` asks for the former. P itself is never masked.

    The published code's server is AdamW with a weight decay of 0.01; the listing's Adam has none, and is followed.

    With tiers, a client uploads as many values as HetLoRA's client of its tier, head included, and downloads as many:
    the whole head and the largest of LoRA, as in the published code, as a client that is sent no head would train one
    from zero in every round. The main view is the highest tier's, and the others stand beside it. With
    download_density all download alike, the largest of P, and there is one view. The published code gives tiers by
    client number; here they are drawn by the seed.

    Args:
        upload_density: fraction of its update that a client sends, in (0, 1]; d_up in the paper. Tiers replace it.
        download_density: fraction of P that the server sends, in (0, 1]; d_down. As what is uploaded where not given.
        topk_scope: choose over the whole flat vector, head included, or the same fraction of every layer (Appendix A:
            the former tended to perform better). What a tier downloads is chosen over all of LoRA.
        evaluate_before_step: evaluate P under the mask that was downloaded in the round, as the published code does.
        tiers: how many upload budgets there are among the clients; none where not given, and
            everybody has upload_density.
        tier_base: each tier's budget over the one below it, r_base; the largest that leaves the lowest tier a LoRA
            rank of 1 where not given.
    """

    upload_density: float = 0.25
    download_density: float | None = None
    topk_scope: Literal["global", "layer"] = "global"
    evaluate_before_step: bool = False
    tiers: int | None = None
    tier_base: int | None = None

    def __post_init__(self) -> None:
        require_density("method.upload_density", self.upload_density)
        if self.download_density is not None:
            require_density("method.download_density", self.download_density)
        self._tiers = Tiers(1 if self.tiers is None else self.tiers, self.tier_base, self.lora_rank)

    @property
    def label(self) -> str:
        """FLASC and its densities: of the upload, and of the download where it differs."""
        given, up = self.download_density, as_fraction(self.upload_density)
        down = "" if given is None or (given == self.upload_density and self._tiers.count == 1) else as_fraction(given)
        return f"FLASC {self._tiers.label if self._tiers.count > 1 else up}{down and f', down {down}'}"

    def check(self, layout: Layout) -> None:
        """Tiers are ranks of adapters."""
        if self._tiers.count > 1:
            self._tiers.check(layout)

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """Remembers M_down, each tier's, where the evaluation will ask for it (line 5)."""
        if self.evaluate_before_step:
            vector = state.vector.detach()
            for view, density in self._viewed(state.layout).items():
                state.tensors[BEFORE + view] = self._sent_down(vector, density, state.layout)
        return {}

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Asks the same densities of everybody, or those of the client's tier."""
        return self._plan_of_rank(state.layout, self._tiers.rank_of(client, state.seed))

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """P_i = P * M_down (lines 5 and 10)."""
        return Download(self._downloaded(state.vector.detach(), plan.download_density, state.layout))

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        """dP_i = (P_i - P_i') * M_up,i (lines 16 to 18)."""
        update, density = job.reference - trained, job.plan.upload_density
        if density == 1:
            return Upload(SparseVector.dense(update))
        return Upload(SparseVector.at(update, self._topk(update, density, job.layout)))

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """P as the next client would download it, per tier the highest first, and the whole P."""
        whole, found = state.vector.detach(), {}
        for view, density in self._viewed(state.layout).items():
            before = state.tensors.get(BEFORE + view)
            held = self._downloaded(whole, density, state.layout) if before is None else SparseVector.at(whole, before)
            found[view] = held.to_dense()
        return {**found, "full": whole}

    def _viewed(self, layout: Layout) -> dict[str, float]:
        """What is evaluated, and how dense; where all tiers download alike, one view is all of them."""
        ranks = self._tiers.ranks if self.download_density is None else [self.lora_rank]
        return {
            "masked" if rank == self.lora_rank else f"rank{rank}": self._plan_of_rank(layout, rank).download_density
            for rank in reversed(ranks)
        }

    def _plan_of_rank(self, layout: Layout, lora_rank: int) -> Plan:
        """The densities of a client whose budget is that of this rank."""
        up = self.upload_density
        if self._tiers.count > 1:
            up = density_of(len(rank_slice(layout, lora_rank)), layout.length)
        return Plan(download_density=up if self.download_density is None else self.download_density, upload_density=up)

    def _downloaded(self, vector: Tensor, density: float, layout: Layout) -> SparseVector:
        if density == 1:
            return SparseVector.dense(vector)
        return SparseVector.at(vector, self._sent_down(vector, density, layout))

    def _sent_down(self, vector: Tensor, density: float, layout: Layout) -> Tensor:
        """M_down: the largest entries; of a tier's budget the head takes its part first."""
        if self._tiers.count == 1 or self.download_density is not None:
            return self._topk(vector, density, layout)
        head = layout.where(["head"]).to(vector.device)
        rest = layout.where([segment for segment in layout.segments() if segment != "head"]).to(vector.device)
        left = kept_entries(density, layout.length) - len(head)
        return torch.cat([head, rest[topk_indices(vector[rest], left)]]).sort().values

    def _topk(self, vector: Tensor, density: float, layout: Layout) -> Tensor:
        ranges = layout.layers if self.topk_scope == "layer" else ((0, layout.length),)
        return topk_per_range(vector, density, ranges)
