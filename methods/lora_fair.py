"""LoRA-FAIR: the mean factors, and a correction of B that brings their product close to the mean of the products.

Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement" (arXiv 2411.14961).
Down and up: all of P, as FedIT.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.factors import Combined, FactorAggregate, Stack, Weighting, assign
from fedsim.method import Aggregate, Method, ServerState, Shared
from fedsim.options import require
from fedsim.parameters import Layout


@dataclass
class LoRAFAIR(Method):
    """Corrects the mean B so that its product with the mean A fits the mean of products; all of P travels.

    Source: Bian et al. 2025, LoRA-FAIR (arXiv 2411.14961).

    The paper measures nearness by cosine similarity and descends on it; here it is the squared Frobenius norm, whose
    minimum has a closed form: with T the mean of the products, the dB that minimises norm(T - (B + dB) A)^2 +
    regularisation * norm(dB)^2 is (T - B A) A^T (A A^T + regularisation * I)^-1. The default 0.01 is the paper's, which
    tuned it for its own measure, on another scale.

    Args:
        weighting: of the clients in the means: by their examples, as in the paper, or equal.
        regularisation: how dear a correction is, lambda, 0 or more. At 0 it is the best B for the mean A.
    """

    assigns: ClassVar[bool] = True

    weighting: Weighting = "examples"
    regularisation: float = 0.01

    def __post_init__(self) -> None:
        require("method.regularisation", self.regularisation, self.regularisation >= 0, "0 or more")

    def check(self, layout: Layout) -> None:
        """There must be factors to combine."""
        layout.require_pairs("LoRAFAIR")

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The means, with the corrected B."""
        return FactorAggregate(state, self.weighting, self._corrected)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the means."""
        assign(state, update)

    def _corrected(self, stack: Stack) -> Combined:
        """A and B + dB, from matrices of r by r: T A^T = sum_u w_u B_u (A_u A^T)."""
        a, b, _ = stack.mean()
        target = torch.einsum("u,udr,urs->ds", stack.weights, stack.b, stack.a @ a.T)
        gram = a @ a.T
        damped = gram + self.regularisation * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return Combined(a, b + (target - b @ gram) @ torch.linalg.pinv(damped, hermitian=True))
