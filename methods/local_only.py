"""LocalOnly: every client trains on its own, the frame of reference for what federation gains.

Nothing travels. A client starts from the adapter that the seed gives, and goes on in each round that it is sampled for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.method import ClientJob, Download, Method, Plan, ServerState, Shared, Upload
from fedsim.sparse import SparseVector
from fedsim.state import ClientState

OWN = "own"
"""Under this name a client keeps its P, (P,)."""


@dataclass
class LocalOnly(Method):
    """Trains each client's own adapter and head on its own examples; no byte travels.

    Source: a frame of reference, no paper's method.

    `clients/METRIC` is the number to look at: it needs --evaluation.held_out. The main view is the mean of the vectors
    of all clients that took part so far: a diagnostic that nobody has.
    """

    assigns = True
    personal_parts = True

    def download_support(self, shared: Shared, plan: Plan) -> Tensor:
        """Nothing travels down."""
        return torch.empty(0, dtype=torch.int64)

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """Nothing."""
        vector = state.vector.detach()
        return Download(SparseVector.at(vector, self.download_support(shared, plan).to(vector.device)))

    def start(self, shared: Shared, received: Download, client: ClientState) -> Tensor:
        """Where the client stopped the last time, or as setup drew it."""
        return self.personal(shared, shared.initial, client)

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        """Nothing travels up; all of it stays here."""
        return Upload(None, state={OWN: trained})

    def views(self, state: ServerState) -> dict[str, Tensor]:
        """The mean of what the clients have."""
        vector, mean = state.vector.detach(), state.mean_at_home(OWN)
        return {"diagnostic_mean": vector if mean is None else mean.to(vector)}

    def personal(self, shared: Shared, vector: Tensor, client: ClientState) -> Tensor:
        """The client's own P, as it started if it never took part."""
        return client.tensors.get(OWN, shared.initial)
