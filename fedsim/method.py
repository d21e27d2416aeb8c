"""The contract of a method: the hooks that decide a round, each with FedAdam on dense LoRA as its default.

A round, and where each hook runs:

    prepare      server worker    what happens once, before any client
    plan         every worker     what is asked of each client; a pure function of round and client
    download     server worker    the payload down, once per distinct plan
    begin        training worker  the job: where it starts, what it is measured from, what may move
    upload       training worker  the payload up
    aggregate    server worker    how uploads become one update, added in cohort order
    step         server worker    what the server does with it
    views        server worker    what is evaluated and exported

A method is a dataclass, so its options are its fields; it holds no state of a run. That lives in `ServerState`.
"""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.parameters import Layout
from fedsim.sparse import SparseVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Penalty = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
"""(vector (P,), reference (P,), the job's named tensors) -> scalar, added to the loss; must be usable under vmap."""


@dataclass(frozen=True)
class Plan:
    """What one client is asked to do in one round. Clients with equal plans share one download.

    Attributes:
        download_density: fraction of P that is sent to it, in (0, 1].
        upload_density: fraction of its update that it sends, in (0, 1].
    """

    download_density: float = 1.0
    upload_density: float = 1.0


@dataclass
class ServerState:
    """What the server carries from round to round. It lives on the server worker and in the checkpoint.

    Attributes:
        layout: what stands where in P.
        vector: (P,), the global trainable parameters.
        optimizer: the server optimiser; its one parameter is `vector`.
        tensors: a method's own state, by name.
    """

    layout: Layout
    vector: nn.Parameter
    optimizer: torch.optim.Optimizer
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ClientJob:
    """What one client does between download and upload, as data: any trainer can run it.

    Attributes:
        client: the client.
        position: its place in the cohort.
        plan: what it was asked to do.
        layout: what stands where in P.
        start: (P,), where training starts; shared with jobs of the same download, so never written to.
        reference: (P,), what the update is measured from.
        batches: (steps, B) int64, rows of the training set, -1 for padding at the end of a row.
        draws: augmentation for `batches`, (steps, B, ...) each; empty for none.
        seed: of the client's dropout.
        gradient_mask: (P,) in the dtype of P, of zeros and ones; where it is zero nothing moves, weight decay included.
            None lets everything move.
        rate_scale: (P,), multiplied to the learning rate, or None.
        penalty_tensors: what the method's penalty needs of this client.
    """

    client: int
    position: int
    plan: Plan
    layout: Layout
    start: Tensor
    reference: Tensor
    batches: np.ndarray
    draws: dict[str, Tensor]
    seed: int
    gradient_mask: Tensor | None = None
    rate_scale: Tensor | None = None
    penalty_tensors: dict[str, Tensor] = field(default_factory=dict)

    def step_scale(self) -> Tensor | None:
        """Returns what every step is multiplied by, (P,): the rate scale where the mask lets it, or None."""
        if self.gradient_mask is None or self.rate_scale is None:
            return self.rate_scale if self.gradient_mask is None else self.gradient_mask
        return self.gradient_mask * self.rate_scale


class Aggregate(Protocol):
    """Turns the uploads of a round into one update."""

    def add(self, upload: SparseVector, weight: float) -> None:
        """Takes the next upload, in cohort order."""

    def finish(self) -> Tensor | None:
        """Returns the update, (P,), or None where nothing arrived."""


class Mean:
    """The weighted mean of the updates; an entry that was not sent counts as zero (FLASC, Algorithm 1, line 20)."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self._total = torch.zeros(length, dtype=dtype, device=device)
        self._weight = 0.0

    def add(self, upload: SparseVector, weight: float) -> None:
        """Adds one upload."""
        values = upload.values.to(self._total) * weight
        if upload.indices is None:
            self._total += values
        else:
            self._total[upload.indices.to(self._total.device)] += values
        self._weight += weight

    def finish(self) -> Tensor | None:
        """Returns the mean, (P,), or None where nothing arrived."""
        return self._total / self._weight if self._weight else None


@dataclass
class Method(ABC):  # noqa: B024 - jsonargparse chooses among subclasses of a class that is more than a dataclass
    """FedAdam on dense LoRA (FLASC's paper, Appendix A, Algorithms 3 and 4): the default of every hook.

    Args:
        lora_rank: rank of the factors, at least 1.
        lora_alpha: the product B A is scaled by lora_alpha / lora_rank.
        lora_dropout: dropout of the adapters' input while clients train, in [0, 1).
        lora_targets: roles of the layers that get adapters, out of query, key, value, output, mlp: a list, or names
            with commas between them.
    """

    lora_rank: int = 16
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: str | list[str] = "query,key,value"

    @property
    def label(self) -> str:
        """What tables and figures call it; runs that differ only by seed share it."""
        return type(self).__name__

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """Adapts a frozen backbone: what trains afterwards is P. Runs on every worker, with the same seed."""
        from fedsim.adapters import add_lora

        targets = self.lora_targets
        roles = [role.strip() for role in targets.split(",")] if isinstance(targets, str) else targets
        return add_lora(backbone, self.lora_rank, self.lora_alpha, self.lora_dropout, roles, seed)

    def prepare(self, state: ServerState, round: int) -> None:  # noqa: B027
        """Does what happens once a round, before any client."""

    def plan(self, round: int, client: int) -> Plan:
        """Decides what is asked of a client; a pure function."""
        return Plan()

    def download(self, state: ServerState, plan: Plan) -> SparseVector:
        """Returns what clients of this plan receive."""
        return SparseVector.dense(state.vector.detach())

    def begin(self, job: ClientJob) -> ClientJob:
        """Refines the job that the engine made: start and reference are the decoded download, everything may move."""
        return job

    def penalty(self) -> Penalty | None:
        """Returns what is added to every client's loss, or None."""
        return None

    def upload(self, job: ClientJob, trained: Tensor) -> SparseVector:
        """Returns what the client sends: its update, positive where it descended (Appendix A, FedAdam)."""
        return SparseVector.dense(job.reference - trained)

    def aggregate(self, state: ServerState) -> Aggregate:
        """Returns a fresh aggregate for one round."""
        return Mean(state.layout.length, state.vector.dtype, state.vector.device)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Moves the server's parameters: the update is the optimiser's gradient (Algorithm 1, lines 20 and 21)."""
        state.vector.grad = update
        state.optimizer.step()

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """Returns what is evaluated after the step, (P,) each; the first is the main view, which is exported."""
        return {"full": state.vector.detach()}
