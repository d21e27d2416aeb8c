"""FedEx-LoRA: the mean factors, and what their product lacks is added to the frozen weights.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models" (arXiv
2410.09432). Up: all of P. Down: all of P, and of each round since the client last took part the residual of every
module, as two factors of rank (U - 1) r or whole, whichever is shorter; or the changed weights, where that is shorter
than all the residuals.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.factors import Combined, FactorAggregate, Stack, Weighting, assign
from fedsim.merging import first_lacking, forget, merge, news
from fedsim.method import Aggregate, Download, Method, Plan, ServerState, Shared
from fedsim.parameters import Layout
from fedsim.sparse import SparseVector


@dataclass
class FedExLoRA(Method):
    """Takes over the mean factors and adds the residual to the backbone; P travels, and residuals down.

    Source: Singhal et al. 2025, FedEx-LoRA (arXiv 2410.09432).

    The published code transposes the residual, which is right for GPT-2's Conv1D alone; here it goes in the way round
    that the module has. Its paper sends the residual to clients that all take part in every round; here each is sent
    what it missed, in a form that needs one client's factors less than the paper's and is as exact. `product_error` is
    what the precision of the frozen weights leaves of the residual. What travels in a narrower `value_dtype` is not
    rounded in the simulated weights.

    Args:
        weighting: of the clients in all means: equal, as in the published code, or by their examples.
    """

    assigns: ClassVar[bool] = True

    weighting: Weighting = "uniform"

    def check(self, layout: Layout) -> None:
        """There must be factors to average."""
        layout.require_pairs("FedExLoRA")

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Tells apart since when a client lacks residuals."""
        return Plan(since=first_lacking(state, client))

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """The mean factors, and the residuals that the client lacks."""
        return Download(SparseVector.dense(state.vector.detach()), news(state, plan.since))

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """The mean factors; the residual goes into the frozen weights."""

        def combine(stack: Stack) -> Combined:
            merged = merge(state, shared.round, stack.layer, *residual(stack), self.scale)
            return stack.mean()._replace(merged=merged)

        return FactorAggregate(state, self.weighting, combine)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the means."""
        assign(state, update)
        forget(state)


def residual(stack: Stack) -> tuple[Tensor, Tensor]:
    """What the product of the means lacks of the mean of the products, as factors of rank (U - 1) r.

    sum_u w_u B_u A_u - B A = sum_u w_u (B_u - B) A_u, and as sum_u w_u (B_u - B) = 0, the last client's A may be
    taken off every A_u; its own term is then zero.

    Returns:
        (D_out, (U - 1) r) and ((U - 1) r, D_in); empty with one client, whose product lacks nothing.
    """
    _, b, _ = stack.mean()
    left = stack.weights[:-1].view(-1, 1, 1) * (stack.b[:-1] - b)
    right = stack.a[:-1] - stack.a[-1]
    return torch.cat(tuple(left), dim=1) if len(left) else b[:, :0], right.flatten(0, 1)
