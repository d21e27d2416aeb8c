"""The contract of a method: the hooks that decide a round, each with FedAdam on dense LoRA as its default.

A round, and where each hook runs:

    segments           every worker     which parts of the model P is made of; a change begins a stage
    prepare            server worker    what happens once, before any client; what it returns, everybody knows
    plan               server worker    what is asked of each client
    download_support   every worker     which entries of P go down; both ends know them
    download           server worker    what goes down, once per distinct plan
    start              training worker  where training starts
    begin              training worker  the job: what it is measured from, rates, penalty
    upload_support     every worker     which entries of P go up; both ends know them
    could_upload       server worker    which entries of P anybody could send: where a private run adds noise
    moving             training worker  which entries of P move while a client trains
    upload             training worker  what goes up, and what stays with the client
    aggregate          server worker    how uploads become one update, added in cohort order
    step               server worker    what the server does with it
    views              server worker    what is evaluated and exported
    personal           every worker     what a client evaluates on its own examples
    known              server worker    what still binds a client that is evaluated after training on

A method is a dataclass, so its options are its fields; it holds no state of a run. That lives in `ServerState`.
"""

from abc import ABC
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from fedsim.aggregation import Aggregate, Arrived, Mean
from fedsim.arrangement import Arrangement
from fedsim.parameters import Layout
from fedsim.sparse import SparseVector
from fedsim.state import ClientJob, ClientState, Download, Plan, ServerState, Shared, Upload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Aggregate",
    "Arrangement",
    "Arrived",
    "ClientJob",
    "ClientState",
    "Download",
    "Mean",
    "Method",
    "Penalty",
    "Plan",
    "ServerState",
    "Shared",
    "Upload",
]

Penalty = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
"""(vector (P,), reference (P,), the job's named tensors) -> scalar, added to the loss; must be usable under vmap."""


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

    assigns: ClassVar[bool] = False
    """Whether the server takes over what it aggregated and has no optimiser: the keys of `server` then have no say."""

    personal_parts: ClassVar[bool] = False
    """Whether clients keep parts of P of their own, so that each has a model of its own to evaluate."""

    sums_updates: ClassVar[bool] = False
    """Whether an `aggregate` of its own is the plain sum of the updates all the same, and but measures beside it."""

    keeps_basis: ClassVar[bool] = True
    """Whether an entry of P means the same from round to round, so that a client can owe some of it."""

    lora_rank: int = 16
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: str | list[str] = "query,key,value"

    @property
    def label(self) -> str:
        """What tables and figures call it; runs that differ only by seed share it."""
        return type(self).__name__

    @property
    def scale(self) -> float:
        """What B A is multiplied by, for clients of every rank: alpha / r of the server."""
        return self.lora_alpha / self.lora_rank

    @property
    def private_refusal(self) -> str:
        """Why differential privacy cannot be promised for it, or nothing where it can.

        It can where the server learns of clients by the plain sum of their updates alone, which `privacy` then clips
        and blurs in place of `aggregate`: whatever else a method sees of an upload, or keeps of a client, would be
        neither. docs/privacy.md has all methods.
        """
        if self.personal_parts:
            return "clients keep parts of their own, whose mean it shows without noise"
        if type(self).aggregate is not Method.aggregate and not self.sums_updates:
            return "its server makes more of the uploads than their plain sum"
        return ""

    @property
    def sends_by_history(self) -> bool:
        """Whether what a client sends depends on the rounds that it took part in before.

        Others' sums then tell when they were sampled, which only coins of their own make independent of a client.
        """
        return False

    # Before a run.

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """Adapts a frozen backbone: what trains afterwards is P. Runs on every worker, with the same seed."""
        from fedsim.adapters import add_lora

        targets = self.lora_targets
        roles = [role.strip() for role in targets.split(",")] if isinstance(targets, str) else targets
        return add_lora(backbone, self.lora_rank, self.lora_alpha, self.lora_dropout, roles, seed)

    def check(self, layout: Layout) -> None:  # noqa: B027
        """Raises a ConfigurationError where the method cannot work on what trains."""

    def arrange(self, arrangement: Arrangement) -> Arrangement:
        """Changes who takes part and how they train: for frames of reference that are no federation."""
        return arrangement

    def segments(self, round: int) -> Collection[str] | None:
        """Names the segments that P is made of in a round; None for all that setup left trainable. Pure."""
        return None

    def begin_stage(self, before: ServerState, after: ServerState) -> None:  # noqa: B027
        """Carries the server over where `segments` changed: fills `after.vector`, which holds the initial values."""

    # Before and while things travel down.

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """Does what happens once a round, before any client, and returns what everybody knows of it, by name."""
        return {}

    def plan(self, state: ServerState, round: int, client: int) -> Plan | None:
        """Decides what is asked of a client; pure. None drops it: it downloads, trains and uploads nothing."""
        return Plan()

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """Returns the entries of P that travel up, int64 (k,), rising, known to both ends; None for all."""
        return None

    def could_upload(self, shared: Shared) -> Tensor | None:
        """Returns the entries of P that anybody could send this round, whoever was sampled; where privacy adds noise.

        int64 (k,), rising; None for all. Here what a client of the plan `Plan()` sends.
        """
        return self.upload_support(shared, Plan())

    def moving(self, shared: Shared, plan: Plan) -> Tensor | None:
        """Returns the entries of P that move while a client trains, int64 (k,); None for all. Here what it uploads."""
        return self.upload_support(shared, plan)

    def download_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """Returns the entries of P that travel down, int64 (k,), rising, known to both ends; None for all."""
        return self.upload_support(shared, plan)

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """Returns what clients of this plan receive."""
        return Download(SparseVector.dense(state.vector.detach()))

    def start(self, shared: Shared, received: Download, client: ClientState) -> Tensor:
        """Returns where a client's training starts, (P,); what was not sent is zero."""
        return received.values.to_dense()

    # On the client.

    def begin(self, job: ClientJob) -> ClientJob:
        """Refines the job that the engine made: measured from its start, moving where `moving` says."""
        return job

    def penalty(self) -> Penalty | None:
        """Returns what is added to every client's loss, or None."""
        return None

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        """Returns what the client sends: its update, positive where it descended (Appendix A, FedAdam)."""
        update = job.reference - trained
        support = self.upload_support(job.shared, job.plan)
        if support is None:
            return Upload(SparseVector.dense(update))
        return Upload(SparseVector.at(update, support.to(update.device)))

    # Back at the server.

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """Returns a fresh aggregate for one round."""
        return Mean(state.layout.length, state.vector.dtype, state.vector.device)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Moves the server's parameters: the update is the optimiser's gradient (Algorithm 1, lines 20 and 21)."""
        state.vector.grad = update
        state.optimizer.step()

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """Returns what is evaluated after the step, (P,) each; the first is the main view, which is exported."""
        return {"full": state.vector.detach()}

    def personal(self, shared: Shared, vector: Tensor, client: ClientState) -> Tensor:
        """Returns what a client makes of the main view, (P,): where `personal_parts`, with its own parts restored."""
        return vector

    def known(self, state: ServerState) -> dict[str, Tensor]:
        """Returns what of `prepare`'s tensors binds a client that trains on outside of a round, by name; pure."""
        return {}
