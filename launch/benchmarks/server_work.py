"""What the server does with a round's uploads: seconds and memory of one method's aggregation, without any training."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim.frozen import FrozenBackbone
from fedsim.method import Arrived, Method, Plan, ServerState, Shared
from fedsim.options import ServerOptions
from fedsim.parameters import FlatParameters
from fedsim.reporting import peak_memory_bytes
from fedsim.server import server_optimizer
from fedsim.sparse import SparseVector
from methods.fed_ex_lora import FedExLoRA
from methods.fed_it import FedIT
from methods.flex_lora import FlexLoRA
from methods.flora_na import FLoRANA
from methods.flora_stacking import FLoRAStacking
from methods.lora_fair import LoRAFAIR

METHODS: dict[str, type[Method]] = {
    kind.__name__: kind for kind in (FedIT, FLoRANA, FlexLoRA, LoRAFAIR, FedExLoRA, FLoRAStacking)
}
"""Those that combine both factors of everybody at the server."""


@dataclass(frozen=True)
class Size:
    """How much arrives: of so many clients, the factors of so many modules of width by width."""

    clients: int = 10
    modules: int = 24
    width: int = 768


@dataclass(frozen=True)
class Spent:
    """What one method took.

    Attributes:
        seconds: by the clock, the least of the repeats.
        cpu_seconds: of this process, the least; what else runs on the machine disturbs them less.
        upload_bytes: of all that arrived, as it is held.
        peak_bytes: by how much the process grew beyond that, if it is the first thing that the process did.
        whole_matrices: how many tensors of the size of a whole weight matrix were made.
        product_error: as the method measures it.
    """

    seconds: float
    cpu_seconds: float
    upload_bytes: int
    peak_bytes: int
    whole_matrices: int
    product_error: float


def server_time(method: Method, repeats: int, size: Size = Size()) -> Spent:
    """Times aggregation and step.

    Args:
        method: of the kinds in `METHODS`.
        repeats: how often it is timed, after once for the memory.
        size: of what arrives.
    """
    state, shared = _server(method, size)
    updates = _updates(size.clients, len(state.vector))
    held = peak_memory_bytes()
    _aggregate(method, state, shared, updates)
    grown = peak_memory_bytes() - held
    times = []
    for _ in range(repeats):
        state, shared = _server(method, size)
        started, cpu_started = time.perf_counter(), time.process_time()
        _aggregate(method, state, shared, updates)
        times.append((time.perf_counter() - started, time.process_time() - cpu_started))
    seconds, cpu_seconds = (min(column) for column in zip(*times, strict=True))
    error = state.measures["product_error"]
    state, shared = _server(method, size)
    with _Matrices(size.width) as matrices:
        _aggregate(method, state, shared, updates)
    arrived = sum(update.numel() * update.itemsize for update in updates)
    return Spent(seconds, cpu_seconds, arrived, grown, matrices.seen, error)


class Adapted(nn.Module):
    """One adapted module, its parts named as PEFT names them; it computes nothing."""

    def __init__(self, width: int, lora_rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(width, lora_rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(lora_rank, width, bias=False)})


class _Matrices(TorchDispatchMode):
    """Counts the tensors of width by width that come out of any operation while the context lasts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._shape = (width, width)
        self.seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.seen += sum(isinstance(t, Tensor) and tuple(t.shape[-2:]) == self._shape for t in tree_leaves(result))
        return result


def _aggregate(method: Method, state: ServerState, shared: Shared, updates: list[Tensor]) -> None:
    aggregate = method.aggregate(state, shared)
    for client, update in enumerate(updates):
        aggregate.add(Arrived(client, Plan(), SparseVector.dense(update), (), 1 + client, 1.0))
    mean = aggregate.finish()
    assert mean is not None
    method.step(state, mean)


def _server(method: Method, size: Size) -> tuple[ServerState, Shared]:
    """A server whose B has left zero."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.ModuleDict({f"{at}": Adapted(size.width, method.lora_rank) for at in range(size.modules)})
    parameters = FlatParameters(model)
    vector = nn.Parameter(parameters.vector)
    optimizer = server_optimizer(ServerOptions(), vector)
    initial = vector.detach().clone()
    state = ServerState(parameters.layout, vector, optimizer, initial, FrozenBackbone(model))
    return state, Shared(1, 0, state.layout, state.initial)


def _updates(clients: int, length: int) -> list[Tensor]:
    """Clients that drifted apart by about a quarter of the size of A."""
    random = torch.Generator().manual_seed(1)
    return [5e-3 * torch.randn(length, generator=random) for _ in range(clients)]
