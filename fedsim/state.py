"""What the two ends of a run hold, and what passes between them: plans, states, downloads, uploads, and jobs."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.codec import Part
from fedsim.frozen import FrozenBackbone
from fedsim.parameters import Layout
from fedsim.sparse import SparseVector


@dataclass(frozen=True)
class Plan:
    """What one client is asked to do in one round. Clients with equal plans share one download.

    Attributes:
        download_density: fraction of P that is sent to it, in (0, 1].
        upload_density: fraction of its update that it sends, in (0, 1].
        lora_rank: how many rows of A and columns of B it works on; 0 for all.
        since: the round whose download it still holds, where the method sends changes; 0 for none.
    """

    download_density: float = 1.0
    upload_density: float = 1.0
    lora_rank: int = 0
    since: int = 0


@dataclass(frozen=True)
class ClientState:
    """What a client keeps at home between rounds; the server worker holds it for the clients that were sampled.

    Attributes:
        round: the last round that it took part in; 0 for never.
        tensors: what the method wants it to keep, by name.
    """

    round: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """What both ends of a round know before anything of it travels; every worker has the same.

    Attributes:
        round: 1 to the number of rounds; 0 for the evaluation before the first.
        seed: of the run.
        layout: what stands where in P.
        initial: (P,), as setup drew it.
        tensors: what `Method.prepare` returned: a mask that clients hold already, a factor that they kept, ...
    """

    round: int
    seed: int
    layout: Layout
    initial: Tensor
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ServerState:
    """What the server carries from round to round. It lives on the server worker and in the checkpoint.

    Attributes:
        layout: what stands where in P.
        vector: (P,), the global trainable parameters.
        optimizer: the server optimiser; its one parameter is `vector`.
        initial: (P,), as setup drew it; every worker has it.
        backbone: the frozen part of the model, for methods that change it.
        seed: of the run.
        tensors: a method's own state, by name.
        private: what privacy carries on, by name: a clip that adapts.
        clients: of those that took part, by number.
        measures: what a method found out in this round, by name; means of it go to metrics.csv as server/NAME.
        notes: lines that the user should read, shown after the round.
    """

    layout: Layout
    vector: nn.Parameter
    optimizer: torch.optim.Optimizer
    initial: Tensor
    backbone: FrozenBackbone
    seed: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    private: dict[str, Tensor] = field(default_factory=dict)
    clients: dict[int, ClientState] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def client(self, client: int) -> ClientState:
        """Returns what a client keeps, also of one that was never sampled."""
        return self.clients.get(client, ClientState())

    def mean_at_home(self, name: str) -> Tensor | None:
        """Returns the mean of what clients keep under a name, in float64; None where nobody has it yet."""
        total: Tensor | None = None
        count = 0
        for client in sorted(self.clients):
            kept = self.clients[client].tensors.get(name)
            if kept is not None:
                total = kept.to(torch.float64, copy=True) if total is None else total.add_(kept)
                count += 1
        return None if total is None else total / count

    def restart_optimizer(self) -> None:
        """Forgets the optimiser's moments and steps: a fresh one."""
        self.optimizer.state.clear()


@dataclass(frozen=True, eq=False)
class Download:
    """What the server sends to a client.

    Attributes:
        values: of P, its indices within `Method.download_support`.
        beside: whatever else has to travel: a mask, the bytes of a seed, the factors of a residual.
    """

    values: SparseVector
    beside: tuple[Part, ...] = ()


@dataclass(frozen=True, eq=False)
class Upload:
    """What a client sends to the server, and what it keeps.

    Attributes:
        update: of P, positive where it descended, its indices within `Method.upload_support`; None sends nothing.
        beside: whatever else has to travel.
        state: stays with the client, and is in its next job.
    """

    update: SparseVector | None
    beside: tuple[Part, ...] = ()
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ClientJob:
    """What one client does between download and upload, as data: any trainer can run it.

    Attributes:
        client: the client.
        position: its place in the cohort.
        plan: what it was asked to do.
        shared: what everybody knows of the round.
        start: (P,), where training starts; shared with jobs of the same download, so never written to.
        reference: (P,), what the update is measured from.
        batches: (steps, B) int64, rows of the training set, -1 for padding at the end of a row.
        draws: augmentation for `batches`, (steps, B, ...) each; empty for none.
        seed: of the client's dropout.
        state: what the client keeps at home, by name.
        gradient_mask: (P,) in the dtype of P, of zeros and ones; where it is zero nothing moves, weight decay included.
            None lets everything move.
        rate_scale: (P,), multiplied to the learning rate, or None.
        penalty_tensors: what the method's penalty needs of this client.
    """

    client: int
    position: int
    plan: Plan
    shared: Shared
    start: Tensor
    reference: Tensor
    batches: np.ndarray
    draws: dict[str, Tensor]
    seed: int
    state: dict[str, Tensor] = field(default_factory=dict)
    gradient_mask: Tensor | None = None
    rate_scale: Tensor | None = None
    penalty_tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """What stands where in P."""
        return self.shared.layout

    def step_scale(self) -> Tensor | None:
        """Returns what every step is multiplied by, (P,): the rate scale where the mask lets it, or None."""
        if self.gradient_mask is None or self.rate_scale is None:
            return self.rate_scale if self.gradient_mask is None else self.gradient_mask
        return self.gradient_mask * self.rate_scale
