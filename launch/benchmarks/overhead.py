"""What a round on two workers costs beside the clients' training: encoding, gather, aggregation, step, broadcast."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedsim.client import Trained, Trainer
from fedsim.method import ClientJob
from fedsim.transport import Workers
from launch.benchmarks.local_work import Arena
from launch.benchmarks.two_workers import two_workers
from launch.benchmarks.works import Round, Work


@dataclass(frozen=True)
class Overhead:
    """Medians over rounds.

    Attributes:
        round_ms: a whole round.
        training_ms: of the worker that trained longest.
        share: what is left of a round, as a fraction of it.
    """

    round_ms: float
    training_ms: float
    share: float


class _Watched:
    """A trainer, and the seconds that it took."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.seconds = 0.0

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        """Trains the jobs, and adds up the time between what is asked of it and what it yields."""
        results = iter(self._trainer.train(jobs))
        while True:
            started = time.perf_counter()
            trained = next(results, None)
            self.seconds += time.perf_counter() - started
            if trained is None:
                return
            yield trained


def overhead(work: Work, slots: int, repeats: int, threads: int) -> Overhead:
    """Measures rounds on two workers.

    Args:
        work: what a round is.
        slots: clients in one forward; 1 trains one after another.
        repeats: timed rounds.
        threads: CPU threads of each worker.
    """
    with two_workers(partial(_share, work, slots), threads) as train:
        train(1)  # warms up
        found = torch.stack([train(repeat + 2) for repeat in range(repeats)])
    whole, training = found[:, 0, 0], found[:, 1].amax(1)  # the server worker's clock, and whoever trained longest
    share = (whole - training) / whole
    return Overhead(*(statistics.median(each.tolist()) for each in (1e3 * whole, 1e3 * training, share)))


def _share(work: Work, slots: int, workers: Workers) -> Round:
    """One worker's part of a round; returns its seconds and its trainer's in place of the update, (2, workers)."""
    watched: list[_Watched] = []

    def watch(trainer: Trainer) -> Trainer:
        watched.append(_Watched(trainer))
        return watched[0]

    train = Arena(work).engine(slots, workers, watch=watch)

    def round(number: int) -> Tensor:
        watched[0].seconds = 0.0
        started = time.perf_counter()
        train(number)
        spent = torch.zeros(2, workers.count, dtype=torch.float64)
        spent[:, workers.rank] = torch.tensor([time.perf_counter() - started, watched[0].seconds])
        return workers.sum(spent)

    return round
