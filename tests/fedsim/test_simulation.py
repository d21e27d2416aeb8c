"""Rounds at their edges: who is assigned by what cost, what stops a run, and a cohort that holds nothing."""

import csv
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim import simulation
from fedsim.errors import TrainingError
from fedsim.method import ClientJob, Plan, ServerState
from fedsim.options import ClientOptions, CommunicationOptions, RunOptions, ServerOptions
from fedsim.progress import Progress
from fedsim.reporting import History, RunFiles
from fedsim.sparse import SparseVector
from methods.lora import LoRA
from tests import tiny

SIZES = [5, 0, 9, 3]


def one_round(experiment: simulation.Experiment, files: RunFiles | None = None) -> ServerState:
    state = simulation.initial_state(experiment.parameters, experiment.server)
    simulation.run_round(experiment, state, 1, tiny.ONE_WORKER, files)
    return state


def files_in(folder: Path) -> RunFiles:
    return RunFiles(folder, History(), 0, Progress(None, "run", 1))


@pytest.mark.parametrize(
    ("options", "costs"),
    [({}, [2, 0, 3, 1]), ({"local_epochs": 3}, [6, 0, 9, 3]), ({"max_steps": 2}, [2, 0, 2, 1]),
     ({"max_steps": 1}, [1, 0, 1, 1]), ({"local_epochs": 3, "max_steps": 4}, [4, 0, 4, 3])],
)  # fmt: skip
def test_clients_are_assigned_by_the_steps_they_take(
    options: dict[str, Any], costs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those are the steps that they are given: max_steps cuts the work of large clients."""
    seen: dict[str, list[int]] = {}
    assign, begin = simulation.assign, LoRA.begin

    def spy_costs(given: list[int], workers: int) -> list[int]:
        seen["costs"] = list(given)
        return assign(given, workers)

    def spy_jobs(self: LoRA, job: ClientJob) -> ClientJob:
        seen.setdefault("steps", [0] * len(SIZES))[job.position] = len(job.batches)
        return begin(self, job)

    monkeypatch.setattr(simulation, "assign", spy_costs)
    monkeypatch.setattr(LoRA, "begin", spy_jobs)
    run = RunOptions(rounds=1, cohort_size=len(SIZES))
    one_round(tiny.experiment(tiny.build(), SIZES, client=ClientOptions(batch_size=4, **options), run=run))
    assert seen == {"costs": costs, "steps": costs}


@dataclass
class Loud(LoRA):
    """Payloads far beyond what float16 holds, and well within float32."""

    way: str = "up"

    def upload(self, job: ClientJob, trained: Tensor) -> SparseVector:
        return SparseVector.dense((1e12 if self.way == "up" else 1) * (job.reference - trained))

    def download(self, state: ServerState, plan: Plan) -> SparseVector:
        return SparseVector.dense(state.vector.detach() * (1e12 if self.way == "down" else 1))


@pytest.mark.parametrize(
    ("way", "says"), [("up", "the upload of client [024] in round 1: "), ("down", "the download of round 1: ")]
)
def test_a_payload_that_overflows_stops_the_run_in_words(way: str, says: str) -> None:
    built = tiny.build(Loud(lora_rank=2, way=way))
    narrow = tiny.experiment(built, [5, 0, 9, 0, 3], communication=CommunicationOptions(value_dtype="float16"))
    with pytest.raises(TrainingError, match=rf"^{says}\d+ of \d+ values are not finite as float16.*wider value dtype"):
        one_round(narrow)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_cohort_without_any_examples_is_a_round_without_a_step(optimizer: str, tmp_path: Path) -> None:
    """Adam would step on momentum alone. Nothing travels, and the ledger says so, a row per client."""
    built = tiny.build()
    empty = tiny.experiment(built, [0, 0, 0, 0], server=ServerOptions(optimizer=optimizer))
    before = built.vector.clone()
    with files_in(tmp_path) as files:
        result = simulation.simulate(empty, tiny.ONE_WORKER, files, None)
    assert torch.equal(result.vector, before)
    with (tmp_path / "ledger.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1"] * 3 + ["2"] * 3
    assert {value for row in rows for name, value in row.items() if name not in ("round", "client")} == {"0"}
    with (tmp_path / "metrics.csv").open(newline="") as file:
        metrics = list(csv.DictReader(file))
    assert [row["round"] for row in metrics] == ["0", "1", "2"]
    assert len({(row["accuracy"], row["loss"], row["upload_bytes"]) for row in metrics}) == 1


def test_a_round_between_without_examples_changes_nothing(tmp_path: Path) -> None:
    """Momentum from the rounds before stays as it is."""
    built = tiny.build()
    one_of_six = tiny.experiment(built, [0, 0, 0, 0, 0, 8], run=RunOptions(rounds=12, cohort_size=3))
    state = simulation.initial_state(built.parameters, one_of_six.server)
    moved = []
    with files_in(tmp_path) as files:
        for round in range(1, 13):
            before = state.vector.detach().clone()
            sent = files.ledger.totals.upload_bytes
            simulation.run_round(one_of_six, state, round, tiny.ONE_WORKER, files)
            moved.append(not torch.equal(state.vector, before))
            assert moved[-1] == (files.ledger.totals.upload_bytes > sent)
    assert True in moved
    assert False in moved[moved.index(True) :]


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(held), Tensor) for held in gc.get_objects())


@pytest.mark.parametrize("slots", [0, 2], ids=["one after another", "packed"])
def test_thirty_rounds_hold_no_more_tensors_than_ten(slots: int, tmp_path: Path) -> None:
    """A leak of one tensor a round shows here at once, where resident memory would hide it for hours."""
    built = tiny.build()
    trainer = built.packed(slots) if slots else built.sequential()
    run = RunOptions(rounds=30, cohort_size=3)
    experiment = tiny.experiment(built, [2, 4, 6, 8], trainer=trainer, run=run)
    state = simulation.initial_state(built.parameters, experiment.server)
    held = {}
    with files_in(tmp_path) as files:
        for round in range(1, 31):
            simulation.run_round(experiment, state, round, tiny.ONE_WORKER, files)
            if round % 5 == 0:
                simulation.evaluate(experiment, state, round, tiny.ONE_WORKER, files)
                simulation.save_checkpoint(tmp_path, simulation.snapshot(state, round, files.history()))
            if round % 10 == 0:
                held[round] = live_tensors()
    assert held == dict.fromkeys((10, 20, 30), held[10])
