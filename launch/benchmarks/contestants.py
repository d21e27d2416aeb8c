"""Who is measured: the bare training loop, other simulators, and the engine in its ways to do the same round."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launch.activations import checkpoint_activations
from launch.benchmarks.local_work import Arena
from launch.benchmarks.works import Round
from launch.trainers import Parts

BF16_APART = 1e-2


@dataclass(frozen=True)
class Contestant:
    """One way to do a round.

    Attributes:
        make: builds it for a work.
        threads: how many times the benchmark's threads it has, over all its processes.
        peer: the other simulator that it is, which must be installed.
        most_apart: by which its mean update may differ from the bare loop's: norm of the difference over norm.
    """

    make: Callable[[Arena], Round]
    threads: int = 1
    peer: str | None = None
    most_apart: float = 1e-4


def _bare(arena: Arena) -> Round:
    model = arena.model()
    start = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    def reset(model: nn.Module) -> nn.Module:
        for parameter, value in zip((p for p in model.parameters() if p.requires_grad), start, strict=True):
            parameter.data.copy_(value)
        return model

    return lambda round: arena.loop(reset(model), round, reset)


def _deep_copy(arena: Arena) -> Round:
    model = arena.model()
    return lambda round: arena.loop(model, round, copy.deepcopy)


def _bare_two_threads(arena: Arena) -> Round:
    train, threads = _bare(arena), torch.get_num_threads()

    def train_round(round: int) -> Tensor:
        torch.set_num_threads(2 * threads)
        update = train(round)
        torch.set_num_threads(threads)
        return update

    return train_round


def _computing_again(parts: Parts) -> Parts:
    checkpoint_activations(parts.module.backbone)
    return parts


CONTESTANTS: dict[str, Contestant] = {
    "bare": Contestant(_bare),
    "bare_two_threads": Contestant(_bare_two_threads, threads=2),
    "deep_copy": Contestant(_deep_copy),
    "pfl": Contestant(lambda arena: arena.peer("pfl"), peer="pfl"),
    "pfl_two_threads": Contestant(lambda arena: arena.peer("pfl", threads=2), threads=2, peer="pfl"),
    "pfl_bf16": Contestant(lambda arena: arena.peer("pfl", bf16=True), peer="pfl", most_apart=BF16_APART),
    "flower": Contestant(lambda arena: arena.peer("flower"), threads=2, peer="flower"),
    "fedsim_sequential": Contestant(lambda arena: arena.engine(1)),
    "fedsim_two_workers": Contestant(lambda arena: arena.two_workers(1), threads=2),
    "fedsim_packed": Contestant(lambda arena: arena.engine(10)),
    "fedsim_packed_compiled": Contestant(lambda arena: arena.engine(10, compile=True)),
    "fedsim_packed_two_workers": Contestant(lambda arena: arena.two_workers(5), threads=2),
    "fedsim_packed_compiled_two_workers": Contestant(lambda arena: arena.two_workers(5, compile=True), threads=2),
    "fedsim_packed_checkpointed": Contestant(lambda arena: arena.engine(10, prepare=_computing_again)),
    "fedsim_packed_bf16": Contestant(lambda arena: arena.engine(10, bf16=True), most_apart=BF16_APART),
}
"""By name, in the order of the table."""
PFL_OF_THREADS = {1: "pfl", 2: "pfl_two_threads"}
"""Which of pfl's has as many threads as a contestant."""
