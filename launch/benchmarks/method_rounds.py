"""What a round of the sparse methods costs beside one of dense LoRA: whole rounds, in turn, in one process."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from fedsim.method import Method
from fedsim.server import initial_state
from fedsim.simulation import run_round
from launch.benchmarks.local_work import ALONE, Arena
from launch.benchmarks.rounds import median_ratio
from launch.benchmarks.works import Work
from methods.adapter_lth import AdapterLTH
from methods.federated_select import FederatedSelect
from methods.flasc import FLASC
from methods.lora import LoRA
from methods.sparse_adapter import SparseAdapter

DENSE = "LoRA"
METHODS: dict[str, Callable[[], Method]] = {
    DENSE: LoRA,
    "FLASC 1/4": partial(FLASC, upload_density=0.25),
    "FLASC 1/16": partial(FLASC, upload_density=0.0625),
    "SparseAdapter 1/4": partial(SparseAdapter, density=0.25),
    "Federated Select 1/4": partial(FederatedSelect, density=0.25),
    "Adapter LTH": AdapterLTH,
}
WARM_UP = 2
"""Rounds before anything is timed: SparseAdapter's first one is dense."""


@dataclass
class Spent:
    """What the rounds of a method took.

    Attributes:
        seconds: by the clock, of each round.
        cpu_seconds: of this process, of each round; what else runs on the machine disturbs it less.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """A method beside dense LoRA.

    Attributes:
        method: what the table calls it.
        milliseconds: of a round, the median.
        ratio: to dense LoRA's, the median over neighbouring rounds.
        cpu_ratio: the same of CPU time.
    """

    method: str
    milliseconds: float
    ratio: float
    cpu_ratio: float


def method_costs(work: Work, slots: int, repeats: int) -> list[Cost]:
    """Times rounds of every method in turn, each going on from its last, local training to the server's step.

    Args:
        work: what a round is.
        slots: clients in one forward; 1 trains one after another.
        repeats: timed rounds of each.
    """
    spent = {name: Spent() for name in METHODS}
    with Arena(work) as arena:
        rounds = {name: _rounds(arena, make(), slots) for name, make in METHODS.items()}
        for number in range(1, WARM_UP + repeats + 1):
            for name, train in list(rounds.items())[:: 1 if number % 2 else -1]:  # who goes first changes
                started, cpu_started = time.perf_counter(), time.process_time()
                train(number)
                if number > WARM_UP:
                    spent[name].seconds.append(time.perf_counter() - started)
                    spent[name].cpu_seconds.append(time.process_time() - cpu_started)
    dense = spent[DENSE]
    return [
        Cost(
            name,
            1e3 * statistics.median(own.seconds),
            median_ratio(own.seconds, dense.seconds),
            median_ratio(own.cpu_seconds, dense.cpu_seconds),
        )
        for name, own in spent.items()
    ]


def _rounds(arena: Arena, method: Method, slots: int) -> Callable[[int], None]:
    parts = arena.parts()
    experiment = arena.experiment(method, parts, parts.sequential() if slots == 1 else parts.packed(slots))
    state = initial_state(experiment)
    return lambda number: run_round(experiment, state, number, ALONE, None)
