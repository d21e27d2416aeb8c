"""RoLoRA: one factor at a time, so that the mean of that factor is the mean of the products.

Chen et al. 2025, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA" (arXiv 2502.01755). Up: the
head, and B in odd rounds, A in even ones. Down: what changed since the client took part.
"""

from dataclasses import dataclass

from torch import Tensor

from fedsim.factors import Weighting, assign, refusal_of, weight_of
from fedsim.measured import MeasuredMean
from fedsim.method import Aggregate, Download, Method, Plan, ServerState, Shared
from fedsim.parameters import Layout
from fedsim.state import ClientState

SERVER = "server"
"""P as the server has it, of which a client holds what did not change since its last download."""


@dataclass
class RoLoRA(Method):
    """Trains, averages and sends B in odd rounds and A in even ones; the head always.

    Source: Chen et al. 2025, RoLoRA (arXiv 2502.01755).

    The first round trains B: with B at zero, A has no gradient. Its paper lets every client take part in every round,
    so that each holds the frozen factor. Here a client that took part in the round before is sent the factor that
    changed; any other one, a newcomer included, is sent both. Clients that are evaluated after training on train both.
    A head trains and travels in every round, unlike in the paper's supplement, which freezes it as it was drawn.
    Where `communication.value_dtype` rounds what travels, the factor that a client holds is not rounded again.

    Args:
        weighting: of the clients in the mean: equal, as in the paper, or by their examples.
    """

    assigns = True

    weighting: Weighting = "uniform"

    def check(self, layout: Layout) -> None:
        """Both factors must train, each in its turn."""
        layout.require_pairs("RoLoRA")

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """Hands on what clients of the round before hold; of it, `start` takes what is not sent."""
        return {SERVER: state.vector.detach()}

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Tells apart who took part in the round before, and so lacks the last step alone."""
        last = state.client(client).round
        return Plan(since=last if last and last == round - 1 else 0)

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """The round's own factor and the head; everything in an evaluation of clients, which is no round."""
        return _active(shared.layout, shared.round) if SERVER in shared.tensors else None

    def download_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """What the last step changed, for who lacks nothing else; all of P for everybody else."""
        return _active(shared.layout, shared.round - 1) if plan.since else None

    def start(self, shared: Shared, received: Download, client: ClientState) -> Tensor:
        """What was sent, within what the client holds."""
        sent = received.values
        if sent.indices is None:
            return sent.values
        return shared.tensors[SERVER].index_copy(0, sent.indices, sent.values)

    @property
    def private_refusal(self) -> str:
        """Weights of their own; the mean itself is a plain sum."""
        return refusal_of(self.weighting)

    @property
    def sends_by_history(self) -> bool:
        """The factor that a client holds since the round before was never rounded to what travels."""
        return True

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The mean of the round's factor and of the head; the other factor keeps every bit."""
        return MeasuredMean(state, lambda arrived: weight_of(arrived, self.weighting))

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the mean."""
        assign(state, update)


def _active(layout: Layout, round: int) -> Tensor:
    """The entries that a round trains."""
    return layout.where(["B" if round % 2 else "A", "head"])
