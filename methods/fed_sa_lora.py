"""FedSA-LoRA: clients share A and keep B and the head to themselves.

Guo et al. 2025, "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR (arXiv 2410.01463). Both
ways: A. B and the head stay with the client, from round to round.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from fedsim.aggregation import Arrived, Mean
from fedsim.factors import FactorAggregate, Weighting, assign, weight_of
from fedsim.method import Aggregate, ClientJob, Download, Method, Plan, ServerState, Shared, Upload
from fedsim.parameters import Layout
from fedsim.sparse import SparseVector
from fedsim.state import ClientState

OWN = "own"
"""Under this name a client keeps its own entries of P, (k,)."""


@dataclass
class FedSALoRA(Method):
    """Trains A, B and the head, and averages A: A alone travels.

    Source: Guo et al. 2025, FedSA-LoRA (arXiv 2410.01463).

    A client's model is the mean A with its own B and head: `clients/METRIC` is the number to look at. There is no
    global model; the main view puts the mean A together with the mean B and head of all clients that took part so far.
    It is a diagnostic that nobody has and that costs no bytes. `product_error` is that of the round's own clients, of
    the mean of their A with the mean of their B, which the simulator knows and the server would not. The published
    code keeps one B for all clients in turn (one module serves them); here each has its own. A client that never took
    part has B as it starts, zero, and the head that the backbone comes with, for which nobody pays.

    Args:
        share_head: the head travels and is averaged like A. The released configuration for classification leaves it
            with the client.
        weighting: of the clients in the mean: by their examples, as in the published code, or equal.
    """

    assigns = True
    personal_parts = True

    share_head: bool = False
    weighting: Weighting = "examples"

    def check(self, layout: Layout) -> None:
        """There must be an A to share and a B to keep."""
        layout.require_pairs("FedSALoRA")

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """A, both ways."""
        return shared.layout.where(self._shared_segments())

    def start(self, shared: Shared, received: Download, client: ClientState) -> Tensor:
        """The mean A in the client's own model."""
        own = self.personal(shared, shared.initial, client)
        places = shared.layout.where(self._shared_segments()).to(own.device)
        return own.index_copy(0, places, received.values.to_dense()[places])

    def moving(self, shared: Shared, plan: Plan) -> None:
        """Everything trains, also what does not travel."""
        return None

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        """The update of A; the rest stays here."""
        return replace(super().upload(job, trained), state={OWN: trained[self._own(job.layout, trained)]})

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The weighted mean of A."""
        return _MeanOfShared(self, state)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the mean."""
        assign(state, update)

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """The mean A with the mean B and head over the clients: of no use to anybody, but for comparing."""
        vector = state.vector.detach()
        mean = state.mean_at_home(OWN)
        if mean is not None:
            vector = vector.index_copy(0, self._own(state.layout, vector), mean.to(vector))
        return {"diagnostic_mean": vector}

    def personal(self, shared: Shared, vector: Tensor, client: ClientState) -> Tensor:
        """The client's own B and head, as they started if it never took part."""
        places = self._own(shared.layout, vector)
        return vector.index_copy(0, places, client.tensors.get(OWN, shared.initial[places]))

    def _shared_segments(self) -> list[str]:
        return ["A", "head"] if self.share_head else ["A"]

    def _own(self, layout: Layout, like: Tensor) -> Tensor:
        """The entries of P that stay with the client."""
        shared = self._shared_segments()
        return layout.where([segment for segment in layout.segments() if segment not in shared]).to(like.device)


class _MeanOfShared:
    """The mean of what is shared, and beside it the error of the product that the diagnostic has."""

    def __init__(self, method: FedSALoRA, state: ServerState) -> None:
        self._method, self._state = method, state
        self._mean = Mean(state.layout.length, state.vector.dtype, state.vector.device)
        self._arrived: list[Arrived] = []

    def add(self, arrived: Arrived) -> None:
        self._mean.add_weighted(arrived.update, weight_of(arrived, self._method.weighting))
        self._arrived.append(arrived)

    def finish(self) -> Tensor | None:
        """Returns the mean, (P,); by now every client of the round has its new parts at home."""
        state, whole = self._state, FactorAggregate(self._state, self._method.weighting)
        places = self._method._own(state.layout, state.vector)
        for arrived in self._arrived:
            own = state.vector.detach()[places] - state.client(arrived.client).tensors[OWN]
            update = arrived.update.to_dense().index_copy(0, places, own)
            whole.add(replace(arrived, update=SparseVector.dense(update)))
        whole.finish()
        return self._mean.finish()
