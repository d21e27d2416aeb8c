"""A few rounds of a method on a tiny model, with all that a run leaves."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim.checkpoint import Checkpoint, newest_checkpoint
from fedsim.experiment import Experiment
from fedsim.history import History
from fedsim.method import Method
from fedsim.options import ClientOptions, RunOptions
from fedsim.progress import Progress
from fedsim.reporting import RunFiles
from fedsim.simulation import Result, simulate
from fedsim.transport import Workers
from tests import tiny

SIZES = [5, 0, 9, 3, 6, 4]


@dataclass
class Ended:
    """A run that is over.

    Attributes:
        result: what it returned.
        weights: every parameter of its model, by name.
        metrics: rows of metrics.csv, but for seconds.
        ledger: rows of ledger.csv, but for workers.
        made: the model and what is around it, as the run left them.
    """

    result: Result
    weights: dict[str, Tensor]
    metrics: list[dict[str, str]]
    ledger: list[dict[str, str]]
    made: tiny.Tiny


def short_run(
    method: Method,
    folder: Path,
    workers: Workers = tiny.ONE_WORKER,
    rounds: int = 4,
    backbone: str = "vit",
    resume: bool = False,
    made: tiny.Tiny | None = None,
    **fields: Any,
) -> Ended:
    """Runs the method for a few rounds of three clients each; clients start away from zero.

    Args:
        method: with a LoRA rank of 2.
        folder: for the server worker's files.
        workers: who shares the run.
        rounds: of the run.
        backbone: of `tiny.BACKBONES`.
        resume: go on from the checkpoint in the folder.
        made: of the method, as `tiny.build` made it; a thread must be given one, as building draws from torch's state.
        fields: of the experiment.
    """
    made = made or tiny.build(method, backbone)
    run = RunOptions(rounds=rounds, cohort_size=3, evaluate_every_rounds=2, checkpoint_every_rounds=2)
    client = ClientOptions(lr=0.2, batch_size=4)
    whole = {"run": run, "client": client, "trainer": made.sequential(tiny.SGD(0.2))} | fields
    experiment = tiny.experiment(made, SIZES, **whole)
    if not workers.is_server:
        return _ended(experiment, simulate(experiment, workers, None, None), made, None)
    checkpoint = newest_checkpoint(folder / "checkpoint")[0] if resume else None
    with _files(folder, checkpoint) as files:
        result = simulate(experiment, workers, files, checkpoint)
        files.history()
    return _ended(experiment, result, made, folder)


def _files(folder: Path, checkpoint: Checkpoint | None) -> RunFiles:
    history = History(**checkpoint.meta["history"]) if checkpoint else History()
    return RunFiles(folder, history, checkpoint.round if checkpoint else 0, Progress(None, "run", 1))


def _ended(experiment: Experiment, result: Result, made: tiny.Tiny, folder: Path | None) -> Ended:
    experiment.parameters.load(result.vector)
    weights = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    metrics, ledger = (rows(folder / f"{name}.csv") if folder else [] for name in ("metrics", "ledger"))
    return Ended(result, weights, metrics, ledger, made)


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV's rows without what depends on the machine and on how many workers there were."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "worker")} for row in csv.DictReader(file)]


def same_bits(one: Ended, other: Ended) -> bool:
    """Whether two runs ended with the same model, metrics and ledger."""
    weights = all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    return weights and one.metrics == other.metrics and one.ledger == other.ledger
