"""A server and its clients as adapted modules of any shape, without a model that computes: for rules that combine A
and B."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.frozen import FrozenBackbone
from fedsim.method import Arrived, Method, Plan, ServerState, Shared
from fedsim.options import ServerOptions
from fedsim.parameters import FlatParameters
from fedsim.server import server_optimizer
from fedsim.sparse import SparseVector
from fedsim.tiers import rank_slice

Shapes = Mapping[str, tuple[int, int]]
"""By module: D_out and D_in."""


class Module(nn.Module):
    """An adapted module: a frozen weight and two factors, named as PEFT names them."""

    def __init__(self, d_out: int, d_in: int, lora_rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(d_in, d_out, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(d_in, lora_rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(lora_rank, d_out, bias=False)})


def server(
    shapes: Shapes, lora_rank: int, dtype: torch.dtype = torch.float64, head: int = 2, seed: int = 0
) -> ServerState:
    """A server of random factors, random frozen weights, and a head of so many values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules: dict[str, nn.Module] = {name: Module(*shape, lora_rank) for name, shape in shapes.items()}
        if head:
            whole = nn.Linear(1, head, bias=False)
            modules["score"] = nn.ModuleDict({"modules_to_save": nn.ModuleDict({"default": whole})})
        model = nn.ModuleDict(modules).to(dtype)
    vector = nn.Parameter(FlatParameters(model).vector)
    optimizer = server_optimizer(ServerOptions(), vector)
    layout = FlatParameters(model).layout
    return ServerState(layout, vector, optimizer, vector.detach().clone(), FrozenBackbone(model))


@dataclass
class Client:
    """What one client trained.

    Attributes:
        vector: (P,).
        examples: how many it trained on.
        lora_rank: that it worked on; 0 for all.
    """

    vector: Tensor
    examples: int = 1
    lora_rank: int = 0


def drifted(state: ServerState, count: int, by: float = 0.3, seed: int = 1) -> list[Client]:
    """Clients that went off from the server's P, each on its own."""
    random = torch.Generator().manual_seed(seed)
    vector = state.vector.detach()
    noise = [torch.randn(len(vector), generator=random, dtype=torch.float64).to(vector) for _ in range(count)]
    return [Client(vector + by * each, examples=1 + 2 * at) for at, each in enumerate(noise)]


def given(state: ServerState, a: Sequence[float], b: Sequence[float], examples: Sequence[int] = ()) -> list[Client]:
    """Clients of a server with one module of 1 by 1: a number each for A and for B, and 0 for the head."""
    counts = examples or [1] * len(a)
    return [Client(_of_one(state, *pair), n) for *pair, n in zip(a, b, counts, strict=True)]


def _of_one(state: ServerState, a: float, b: float) -> Tensor:
    values = {"A": a, "B": b, "head": 0.0}
    return torch.cat([torch.full((e.stop - e.start,), values[e.segment]) for e in state.layout.entries]).to(
        state.vector
    )


def arrived(state: ServerState, clients: Sequence[Client]) -> list[Arrived]:
    """Their uploads: where they started from, less what they trained; of their slice where their rank is smaller."""
    found = []
    for at, client in enumerate(clients):
        whole = state.vector.detach() - client.vector
        update = SparseVector.dense(whole)
        if client.lora_rank:
            update = SparseVector.at(whole, rank_slice(state.layout, client.lora_rank))
        found.append(Arrived(at, Plan(lora_rank=client.lora_rank), update, (), client.examples, 1.0))
    return found


def run_round(method: Method, state: ServerState, clients: Sequence[Client], round: int = 1) -> ServerState:
    """Aggregates and steps, as the engine does; the state moves on in place."""
    aggregate = method.aggregate(state, Shared(round, state.seed, state.layout, state.initial))
    for upload in arrived(state, clients):
        aggregate.add(upload)
    update = aggregate.finish()
    assert update is not None
    method.step(state, update)
    return state


def factors(state: ServerState, vector: Tensor | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of every module, as copies."""
    views = state.layout.views(state.vector.detach() if vector is None else vector)
    return {
        p.layer: (views[p.a.name].double().numpy().copy(), views[p.b.name].double().numpy().copy())
        for p in state.layout.pairs
    }


def of_clients(state: ServerState, clients: Sequence[Client], layer: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One module's A and B of every client."""
    pairs = [factors(state, client.vector)[layer] for client in clients]
    return [a for a, _ in pairs], [b for _, b in pairs]


def weights_of(clients: Sequence[Client], weighting: str) -> np.ndarray:
    """(C,), summing to 1."""
    counts = np.array([client.examples if weighting == "examples" else 1 for client in clients], dtype=float)
    return counts / counts.sum()


def effective(state: ServerState, scale: float) -> dict[str, np.ndarray]:
    """W + scale * B A of every module: what the model computes with."""
    return {
        layer: state.backbone.weight(layer).double().numpy() + scale * b @ a for layer, (a, b) in factors(state).items()
    }
