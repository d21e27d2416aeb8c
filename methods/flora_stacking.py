"""FLoRA by stacking: the mean of the products goes into the frozen weights, and LoRA starts anew in every round.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations" (arXiv
2409.05976). Up: all of P. Down: the head, the seed of the new A, and of each round since the client last took part the
stacked factors of every module or their product, whichever is shorter; or the changed weights, where that is shorter
than all of them.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.factors import Combined, FactorAggregate, Stack, Weighting, assign
from fedsim.merging import first_lacking, forget, merge, news
from fedsim.method import Aggregate, Download, Method, Plan, ServerState, Shared
from fedsim.parameters import Layout
from fedsim.seeding import Purpose, generator
from fedsim.sparse import SparseVector
from fedsim.state import ClientState


@dataclass
class FLoRAStacking(Method):
    """Merges the stacked factors into the backbone and draws LoRA anew; P travels up, the stacks down.

    Source: Wang et al. 2024, FLoRA (arXiv 2409.05976).

    Stacking scales A_u by w_u; the product of the stacks is the weighted mean of the products. Before every round A is
    drawn as PEFT draws it, from a seed of eight bytes that clients are sent, and B is zero. Its paper has every client
    take part in every round; here each is sent what it missed. `product_error` is what the precision of the frozen
    weights leaves of the sum. All clients have the server's rank; in the paper they may differ, as in `FlexLoRA` here.
    What travels in a narrower `value_dtype` is not rounded in the simulated weights.

    Args:
        weighting: of the clients, w_u: by their examples, as in the paper, or equal.
    """

    assigns: ClassVar[bool] = True
    keeps_basis: ClassVar[bool] = False

    weighting: Weighting = "examples"

    def check(self, layout: Layout) -> None:
        """There must be factors to stack."""
        layout.require_pairs("FLoRAStacking")

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        """Draws A anew and sets B to zero."""
        restart(state.layout, state.vector.data, _seed(state.seed, round))
        return {}

    def plan(self, state: ServerState, round: int, client: int) -> Plan:
        """Tells apart since when a client lacks what was merged."""
        return Plan(since=first_lacking(state, client))

    def download_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        """The head; A comes by its seed, and B is zero."""
        return shared.layout.where(["head"])

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        """The head, A's seed, and the stacks that the client lacks."""
        support = self.download_support(shared, plan)
        assert support is not None
        values = SparseVector.at(state.vector.detach(), support.to(state.vector.device))
        return Download(values, (_seed(state.seed, shared.round), *news(state, plan.since)))

    def start(self, shared: Shared, received: Download, client: ClientState) -> Tensor:
        """The head that was sent, A from its seed, and B at zero."""
        vector, seed = received.values.to_dense().clone(), received.beside[0]
        assert isinstance(seed, bytes)
        restart(shared.layout, vector, seed)
        return vector

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """Merges the product of the stacks; what is evaluated upon it is the A of the next round, with B at zero."""
        restarted = torch.zeros_like(state.vector.data)
        restart(state.layout, restarted, _seed(state.seed, shared.round + 1))
        factors = state.layout.views(restarted)
        pairs = {pair.layer: pair for pair in state.layout.pairs}

        def combine(stack: Stack) -> Combined:
            right, left = stack.concatenated()
            merged = merge(state, shared.round, stack.layer, left, right, self.scale)
            pair = pairs[stack.layer]
            return Combined(factors[pair.a.name].double(), factors[pair.b.name].double(), merged)

        return FactorAggregate(state, self.weighting, combine)

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the mean head and the new factors."""
        assign(state, update)
        forget(state)


def restart(layout: Layout, vector: Tensor, seed: bytes) -> None:
    """Draws every A from U(-1 / sqrt(D_in), 1 / sqrt(D_in)), as PEFT does, and sets every B to zero, in place.

    Args:
        layout: of the vector.
        vector: (P,).
        seed: all that A depends on.
    """
    random = np.random.default_rng(int.from_bytes(seed, "little"))
    views = layout.views(vector)
    for pair in layout.pairs:
        bound = pair.a.shape[1] ** -0.5
        views[pair.a.name].copy_(torch.from_numpy(random.uniform(-bound, bound, tuple(pair.a.shape))))
        views[pair.b.name].zero_()


def _seed(seed: int, round: int) -> bytes:
    """What A of a round is drawn from."""
    return generator(seed, Purpose.METHOD, round).bytes(8)
