"""FLASC: dense local training, sparse communication.

Kuo et al., "FLASC: Federated LoRA with Sparse Communication", Algorithm 1. Down: the k largest |P| (lines 5 and 10).
The client trains all of P (lines 12 to 15). Up: the k largest of its update (lines 16 to 18).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedsim.method import ClientJob, Method, Plan, ServerState
from fedsim.parameters import Layout
from fedsim.sparse import SparseVector, as_fraction, require_density, topk_per_range


@dataclass
class FLASC(Method):
    """Keeps only the largest entries of what travels; freezes nothing.

    Source: Kuo et al., FLASC, Algorithm 1.

    The published code evaluates the new P under the mask from before the step; here the main view is P as the next
    client would download it, unless `evaluate_before_step` asks for the former. P itself is never masked.

    Args:
        upload_density: fraction of its update that a client sends, in (0, 1]; d_up in the paper.
        download_density: fraction of P that the server sends, in (0, 1]; d_down. As upload_density where not given.
        topk_scope: choose over the whole flat vector, head included, or the same fraction of every layer (Appendix A:
            the former tended to perform better).
        evaluate_before_step: evaluate P under the mask that was downloaded in the round, as the published code does.
    """

    upload_density: float = 0.25
    download_density: float | None = None
    topk_scope: Literal["global", "layer"] = "global"
    evaluate_before_step: bool = False

    def __post_init__(self) -> None:
        require_density("method.upload_density", self.upload_density)
        if self.download_density is not None:
            require_density("method.download_density", self.download_density)

    @property
    def label(self) -> str:
        """FLASC and its densities: of the upload, and of the download where it differs."""
        plan = self.plan(0, 0)
        down = "" if plan.download_density == plan.upload_density else f", down {as_fraction(plan.download_density)}"
        return f"FLASC {as_fraction(plan.upload_density)}{down}"

    def prepare(self, state: ServerState, round: int) -> None:
        """Remembers M_down where the evaluation will ask for it (line 5)."""
        if self.evaluate_before_step:
            state.tensors["download_mask"] = self._topk(
                state.vector.detach(), self.plan(round, 0).download_density, state.layout
            )

    def plan(self, round: int, client: int) -> Plan:
        """Asks the same densities of everybody."""
        down = self.upload_density if self.download_density is None else self.download_density
        return Plan(download_density=down, upload_density=self.upload_density)

    def download(self, state: ServerState, plan: Plan) -> SparseVector:
        """P_i = P * M_down (lines 5 and 10)."""
        return self._sparse(state.vector.detach(), plan.download_density, state.layout)

    def upload(self, job: ClientJob, trained: Tensor) -> SparseVector:
        """dP_i = (P_i - P_i') * M_up,i (lines 16 to 18)."""
        return self._sparse(job.reference - trained, job.plan.upload_density, job.layout)

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """P as the next client would download it, and the whole P."""
        whole = state.vector.detach()
        masked = self._sparse(whole, self.plan(0, 0).download_density, state.layout)
        if "download_mask" in state.tensors:
            masked = SparseVector.at(whole, state.tensors["download_mask"])
        return {"masked": masked.to_dense(), "full": whole}

    def _sparse(self, vector: Tensor, density: float, layout: Layout) -> SparseVector:
        if density == 1:
            return SparseVector.dense(vector)
        return SparseVector.at(vector, self._topk(vector, density, layout))

    def _topk(self, vector: Tensor, density: float, layout: Layout) -> Tensor:
        ranges = layout.layers if self.topk_scope == "layer" else ((0, layout.length),)
        return topk_per_range(vector, density, ranges)
