"""Rounds of a method on a tiny model, watched from inside: jobs, messages, measures, and the server after each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedsim.client import Trained, Trainer
from fedsim.ledger import Entry
from fedsim.method import ClientJob, Method, ServerState
from fedsim.optimizers import LocalOptimizer
from fedsim.options import CommunicationOptions, RunOptions
from fedsim.server import enter_stage, initial_state
from fedsim.simulation import run_round
from tests import tiny


@dataclass
class Round:
    """What happened in one round.

    Attributes:
        number: 1 or more.
        state: the server's, after it; it moves on with the next one.
        trained: every client's work, in cohort order.
        entries: of the ledger.
        measures: what the method found out.
        notes: what the user was told.
    """

    number: int
    state: ServerState
    trained: list[Trained] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, client: int) -> Trained:
        """What a client of the round did."""
        return next(done for done in self.trained if done.job.client == client)


class Watch:
    """Stands in for a run's trainer and its files."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.now: Round

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        done = sorted(self._trainer.train(jobs), key=lambda trained: trained.job.position)
        self.now.trained += done
        return iter(done)

    def trained(self, entry: Entry, logged: Mapping[str, float]) -> None:
        self.now.entries.append(entry)

    def round_done(self, round: int, measures: Mapping[str, float], notes: Sequence[str], seconds: float) -> None:
        self.now.measures, self.now.notes = dict(measures), list(notes)


def rounds(
    method: Method,
    count: int,
    sizes: Sequence[int] = (5, 4, 9, 6, 7),
    backbone: str = "vit",
    dtype: torch.dtype = torch.float64,
    optimizer: LocalOptimizer | None = None,
    slots: int = 0,
    **fields: Any,
) -> Iterator[Round]:
    """Plays so many rounds, of three clients each, and yields after every one.

    Args:
        method: the run's.
        count: how many.
        sizes: how many examples the clients hold, 40 in all at most.
        backbone: of `tiny.BACKBONES`.
        dtype: of P and of what travels.
        optimizer: the clients'; SGD of rate 0.2.
        slots: how many clients train in one forward; one after another where it is 0.
        fields: of the experiment.
    """
    built = tiny.build(method, backbone, dtype)
    local = optimizer or tiny.SGD(0.2)
    penalty = method.penalty()
    watch = Watch(built.packed(slots, local, penalty) if slots else built.sequential(local, penalty))
    whole: dict[str, Any] = {
        "trainer": watch,
        "communication": CommunicationOptions(value_dtype=str(dtype).removeprefix("torch.")),  # type: ignore[arg-type]
        "run": RunOptions(rounds=count, cohort_size=min(3, len(sizes))),
    } | fields
    experiment = tiny.experiment(built, list(sizes), **whole)
    built.parameters.activate(method.segments(1))
    state = initial_state(experiment)
    for number in range(1, count + 1):
        state = enter_stage(experiment, state, number, True)
        watch.now = Round(number, state)
        run_round(experiment, state, number, tiny.ONE_WORKER, watch)  # type: ignore[arg-type]
        yield watch.now
