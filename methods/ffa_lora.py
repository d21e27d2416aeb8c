"""FFA-LoRA: A stays as it was drawn, so that averaging B averages the products exactly.

Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning", ICLR. Down and up: B and the head. A client
that takes part for the first time also pays for the seed that A is drawn from.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fedsim.measured import MeasuredMean
from fedsim.method import Aggregate, Download, Method, Plan, ServerState, Shared
from fedsim.seeding import Purpose, torch_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class FFALoRA(Method):
    """Freezes A at its random start; B and the head train and travel.

    Source: Sun et al. 2024 (ICLR); with FedAdam as in Kuo et al., FLASC, Appendix A.

    As mean(B_u) A = mean(B_u A), what the server optimiser is given has no error of aggregation; `product_error` shows
    it. The mean is stepped by the server optimiser, as FLASC's comparison does; --server.optimizer sgd --server.lr 1
    makes it FedAvg. The head trains, as in FLASC.
    """

    sums_updates = True

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """Adapts the backbone and freezes A, so that P is B and the head."""
        model = super().setup(backbone, seed)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
        return model

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Tells apart who has A already, since the first round that it took part in: A never changes."""
        return Plan(since=min(1, state.client(client).round))

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """B and the head, and for newcomers the 8 bytes that A is drawn from."""
        seed = torch_seed(shared.seed, Purpose.ADAPTER).to_bytes(8, "little")
        return Download(super().download(state, shared, plan).values, () if plan.since else (seed,))

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The mean of B and of the head."""
        return MeasuredMean(state)
