"""FedIT: federated averaging of LoRA's factors, each on its own.

Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (arXiv 2305.05644). Down and up: all
of P.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.factors import FactorAggregate, Weighting, assign, refusal_of
from fedsim.method import Aggregate, Method, ServerState, Shared
from fedsim.parameters import Layout


@dataclass
class FedIT(Method):
    """Takes over the mean of all A and the mean of all B; all of P travels both ways.

    Source: Zhang et al. 2023, FedIT (arXiv 2305.05644).

    Args:
        weighting: of the clients in the means: by their examples, as in the paper, or equal.
    """

    assigns: ClassVar[bool] = True

    weighting: Weighting = "examples"

    def check(self, layout: Layout) -> None:
        """There must be factors to average."""
        layout.require_pairs("FedIT")

    @property
    def private_refusal(self) -> str:
        """Weights of their own; the mean itself is a plain sum."""
        return refusal_of(self.weighting)

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """A = sum w_u A_u and B = sum w_u B_u, and the same for the head."""
        return FactorAggregate(state, self.weighting)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the means."""
        assign(state, update)
