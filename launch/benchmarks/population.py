"""What a round costs whose clients are a few of very many: 100 of a million against 100 of a thousand."""

import time
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from data_partitions.dataset import FederatedData
from data_partitions.datasets.digits import PIXEL_MEAN, PIXEL_STD
from launch.benchmarks.contestants import CONTESTANTS
from launch.benchmarks.local_work import Arena
from launch.benchmarks.works import Work, digits, tiny_vit

FEW = 1000
COHORT = 100
EXAMPLES = 10
"""How many clients the smaller population has, how many take part in a round, and how much each of them holds."""


@dataclass(frozen=True, eq=False)
class Inked(FederatedData):
    """Handwritten digits stored as bytes, the counts of ink that they were measured in."""

    def transform(self, batch: dict[str, Tensor], draws: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Scales the counts as the backbone expects them; see `FederatedData.transform`."""
        return {**batch, "pixel_values": (batch["pixel_values"].float() - PIXEL_MEAN) / PIXEL_STD}


def many_digits(examples: int) -> FederatedData:
    """Repeats handwritten digits until there are so many; every row lies in memory, 64 bytes and its label."""
    data = digits()

    def split(columns: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        counts = (columns["pixel_values"] * PIXEL_STD + PIXEL_MEAN).round().to(torch.uint8)
        return {"pixel_values": counts[rows], "labels": columns["labels"][rows]}

    train = split(data.train, torch.arange(examples) % len(data.train["labels"]))
    return Inked(train, split(data.test, torch.arange(10)), data.label_names, data.task)


def work_of(population: int) -> Work:
    """A round of the same work whatever the population: so many clients, one step of all its examples for each."""
    data = partial(many_digits, population * EXAMPLES)
    return Work("population", data, tiny_vit, EXAMPLES, clients=COHORT, steps=1, population=population)


@dataclass
class Times:
    """What the rounds of one population took.

    Attributes:
        clients: how many there are.
        seconds: by the clock, of each round.
        cpu_seconds: of this process, of each round; what else runs on the machine disturbs it less.
    """

    clients: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def population_times(population: int, repeats: int) -> tuple[Times, Times]:
    """Times rounds of both populations in turn, in this process; who goes first changes from one pair to the next.

    Args:
        population: how many clients the larger one has, at least `COHORT`. As many as the smaller one measures the
            machine: both then do the very same rounds.
        repeats: rounds of each.

    Returns:
        The smaller population's times, and the larger one's, round by round.
    """
    both = (Times(FEW), Times(population))
    with Arena(work_of(FEW)) as few, Arena(work_of(population)) as many:
        contestants = [
            (times, CONTESTANTS["fedsim_sequential"].make(arena))
            for times, arena in zip(both, (few, many), strict=True)
        ]
        for _, train in contestants:
            train(0)
        for repeat in range(repeats):
            for times, train in contestants[:: 1 if repeat % 2 == 0 else -1]:
                started, cpu_started = time.perf_counter(), time.process_time()
                train(repeat + 1)
                times.seconds.append(time.perf_counter() - started)
                times.cpu_seconds.append(time.process_time() - cpu_started)
    return both
