"""Rounds at their edges: who is assigned by what cost, what stops a run, a cohort that holds nothing, clients that
are dropped or keep something, stages."""

import csv
import gc
import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from fedsim import schedule, simulation
from fedsim.checkpoint import newest_checkpoint
from fedsim.codec import HEADER_BYTES
from fedsim.errors import TrainingError
from fedsim.history import History
from fedsim.method import Arrived, ClientJob, ClientState, Download, Mean, Plan, ServerState, Shared, Upload
from fedsim.options import ClientOptions, CommunicationOptions, RunOptions, ServerOptions
from fedsim.progress import Progress
from fedsim.reporting import RunFiles
from fedsim.sampling import sample_cohort
from fedsim.seeding import Purpose, generator
from fedsim.sparse import SparseVector
from methods.fed_sa_lora import FedSALoRA
from methods.flasc import FLASC
from methods.lora import LoRA
from tests import tiny
from tests.rounds import rounds

SIZES = [5, 0, 9, 3]


def one_round(experiment: simulation.Experiment, files: RunFiles | None = None) -> ServerState:
    state = simulation.initial_state(experiment)
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
    waves, begin = simulation.waves, LoRA.begin

    def spy_costs(given: list[int], workers: int, upload_bytes: int) -> list[schedule.Wave]:
        seen["costs"] = list(given)
        return waves(given, workers, upload_bytes)

    def spy_jobs(self: LoRA, job: ClientJob) -> ClientJob:
        seen.setdefault("steps", [0] * len(SIZES))[job.position] = len(job.batches)
        return begin(self, job)

    monkeypatch.setattr(simulation, "waves", spy_costs)
    monkeypatch.setattr(LoRA, "begin", spy_jobs)
    run = RunOptions(rounds=1, cohort_size=len(SIZES))
    one_round(tiny.experiment(tiny.build(), SIZES, client=ClientOptions(batch_size=4, **options), run=run))
    assert seen == {"costs": costs, "steps": costs}


@dataclass
class Loud(LoRA):
    """Payloads far beyond what float16 holds, and well within float32."""

    way: str = "up"

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        return Upload(SparseVector.dense((1e12 if self.way == "up" else 1) * (job.reference - trained)))

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        return Download(SparseVector.dense(state.vector.detach() * (1e12 if self.way == "down" else 1)))


@pytest.mark.parametrize(
    ("way", "policy", "says"),
    [
        ("up", "fail", "the upload of client [024] in round 1: "),
        ("up", "skip", "round 1: all . clients were left out, client [024] because "),
        ("down", "skip", "the download of round 1: "),
    ],
)
def test_a_payload_that_overflows_is_a_fault_of_its_client_or_stops_the_run(way: str, policy: str, says: str) -> None:
    built = tiny.build(Loud(lora_rank=2, way=way))
    narrow = tiny.experiment(
        built,
        [5, 0, 9, 0, 3],
        communication=CommunicationOptions(value_dtype="float16"),
        run=RunOptions(rounds=1, cohort_size=3, on_bad_client=policy),  # type: ignore[arg-type]
    )
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
    state = simulation.initial_state(one_of_six)
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
    state = simulation.initial_state(experiment)
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


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


# What clients keep.


@dataclass
class Counting(LoRA):
    """Every client counts how often it took part, and starts as far from the server's P."""

    lora_rank: int = 2

    def start(self, shared: Shared, received: Download, client: ClientState) -> Tensor:
        return received.values.to_dense() + 0.01 * client.tensors.get("count", torch.tensor(0))

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        count = job.state.get("count", torch.tensor(0))
        assert (job.start - job.shared.tensors["server"]).min() >= 0.0099 * count
        return replace(super().upload(job, trained), state={"count": count + 1})

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        return {"server": state.vector.detach().clone()}


def cohort_of(experiment: simulation.Experiment, round: int) -> list[int]:
    """Who is sampled, and has examples."""
    run, population = experiment.run, experiment.population
    random = generator(run.seed, Purpose.COHORT, round)
    return [c for c in sample_cohort(random, population.clients, run.cohort_size) if population.examples(c)]


def test_every_client_finds_what_it_kept_also_after_a_resume(tmp_path: Path) -> None:
    """Sixteen clients, two without examples, three a round: no count is another's, or anybody's that never came."""
    sizes = [2, 0, 4, 2, 4, 0, 2, 4, 2, 2, 2, 2, 4, 2, 2, 2]
    experiment = tiny.experiment(tiny.build(Counting()), sizes, run=RunOptions(rounds=8, cohort_size=3))
    state = simulation.initial_state(experiment)
    for round in range(1, 6):
        simulation.run_round(experiment, state, round, tiny.ONE_WORKER, None)
    simulation.save_checkpoint(tmp_path, simulation.snapshot(state, 5, {}))
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    state = simulation.initial_state(experiment)
    simulation.restore_state(state, checkpoint)
    for round in range(6, 9):
        simulation.run_round(experiment, state, round, tiny.ONE_WORKER, None)

    came = [cohort_of(experiment, round) for round in range(1, 9)]
    counts = Counter(client for cohort in came for client in cohort)
    assert {client: int(held.tensors["count"]) for client, held in state.clients.items()} == counts
    assert len(counts) < 14, "somebody must have stayed away"
    assert set(counts.values()) >= {1, 2, 3}
    last = {client: number for number, cohort in enumerate(came, start=1) for client in cohort}
    assert {client: held.round for client, held in state.clients.items()} == last


# What is asked of clients.


@dataclass
class Choosy(LoRA):
    """Drops some clients, and asks two things of the others."""

    dropped: tuple[int, ...] = ()
    lora_rank: int = 2

    def __post_init__(self) -> None:
        self.downloads: list[Plan] = []
        self.arrived: list[Arrived] = []

    def plan(self, state: ServerState, round: int, client: int) -> Plan | None:
        return None if client in self.dropped else Plan(since=client % 2)

    def download(self, state: ServerState, shared: Shared, plan: Plan) -> Download:
        self.downloads.append(plan)
        return Download(super().download(state, shared, plan).values, (b"news",) if plan.since else ())

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        return replace(super().upload(job, trained), beside=(bytes([job.client]),))

    def aggregate(self, state: ServerState, shared: Shared) -> Mean:
        arrived = self.arrived

        class Remembering(Mean):
            def add(self, upload: Arrived) -> None:
                arrived.append(upload)
                super().add(upload)

        return Remembering(state.layout.length, state.vector.dtype, state.vector.device)


def choosy(dropped: tuple[int, ...], **options: Any) -> tuple[simulation.Experiment, Choosy]:
    method = Choosy(dropped=dropped)
    run = RunOptions(rounds=1, cohort_size=5)
    return tiny.experiment(tiny.build(method), [5, 4, 9, 6, 0], run=run, **options), method


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_server_adds_what_arrived_in_the_order_of_the_cohort(weighting: Any) -> None:
    """Whatever the order in which a trainer is done with them."""
    experiment, method = choosy((), server=ServerOptions(weighting=weighting))
    train = experiment.trainer.train
    experiment.trainer.train = lambda jobs: reversed(list(train(jobs)))  # type: ignore[method-assign]
    one_round(experiment)
    sizes = {0: 5, 1: 4, 2: 9, 3: 6}
    assert [arrived.client for arrived in method.arrived] == cohort_of(experiment, 1) == list(sizes)
    for arrived in method.arrived:
        assert arrived.plan == Plan(since=arrived.client % 2)
        assert arrived.beside == (bytes([arrived.client]),)
        assert arrived.examples == sizes[arrived.client]
        assert arrived.weight == (arrived.examples if weighting == "examples" else 1)


def test_clients_of_a_plan_share_a_download(tmp_path: Path) -> None:
    experiment, method = choosy(())
    with files_in(tmp_path) as files:
        one_round(experiment, files)
    assert sorted(plan.since for plan in method.downloads) == [0, 1]  # once for each of the two plans
    paid = {int(row["client"]): int(row["download_bytes"]) for row in rows_of(tmp_path, "ledger.csv")}
    dense = HEADER_BYTES + 4 * experiment.parameters.layout.length
    news = HEADER_BYTES + len(b"news")
    assert paid == {0: dense, 1: dense + news, 2: dense, 3: dense + news, 4: 0}


def test_a_dropped_client_costs_nothing_and_counts_for_nothing(tmp_path: Path) -> None:
    """No job, no byte, nothing kept, a row of zeros; the mean runs over the others."""
    experiment, method = choosy((2, 3), server=ServerOptions("sgd", lr=1.0))
    trained: list[int] = []
    train = experiment.trainer.train
    experiment.trainer.train = lambda jobs: train([trained.append(j.client) or j for j in jobs])  # type: ignore[method-assign,func-returns-value]
    before = experiment.parameters.vector.clone()
    with files_in(tmp_path) as files:
        state = one_round(experiment, files)
        assert files.history()["clients"] == 2
    assert sorted(trained) == [0, 1]
    assert sorted(state.clients) == [0, 1]
    rows = rows_of(tmp_path, "ledger.csv")
    assert sorted(int(row["client"]) for row in rows) == [0, 1, 2, 3, 4]
    for row in rows:
        numbers = {int(value) for name, value in row.items() if name not in ("round", "client", "worker")}
        assert (numbers == {0}) == (row["client"] in "234")
    updates = [arrived.update.to_dense() for arrived in method.arrived]
    assert len(updates) == 2
    torch.testing.assert_close(state.vector.detach(), before - (updates[0] + updates[1]) / 2)


def test_a_round_of_which_everybody_is_dropped_is_no_step(tmp_path: Path) -> None:
    experiment, _ = choosy((0, 1, 2, 3, 4))
    before = experiment.parameters.vector.clone()
    with files_in(tmp_path) as files:
        state = one_round(experiment, files)
    assert torch.equal(state.vector, before)
    assert not state.optimizer.state
    assert len(rows_of(tmp_path, "ledger.csv")) == 5
    assert files.ledger.totals.upload_bytes == files.ledger.totals.download_bytes == 0


# What a method finds out.


@dataclass
class Talking(LoRA):
    """Says something in every round, and measures it."""

    lora_rank: int = 2

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        assert state.measures == {}
        assert state.notes == []
        state.measures["round"] = round
        return {"round": torch.tensor(round)}

    def aggregate(self, state: ServerState, shared: Shared) -> Mean:
        if shared.tensors["round"] == 3:
            state.measures["once"] = 0.5
        return super().aggregate(state, shared)  # type: ignore[return-value]

    def step(self, state: ServerState, update: Tensor) -> None:
        super().step(state, update)
        state.notes.append(f"round {state.measures['round']} is over")


def test_notes_are_shown_and_measures_averaged_between_evaluations(tmp_path: Path) -> None:
    """The row of round 2 has the mean of rounds 1 and 2, the row of round 4 that of 3 and 4."""
    shown = io.StringIO()
    run = RunOptions(rounds=4, cohort_size=2, evaluate_every_rounds=2)
    experiment = tiny.experiment(tiny.build(Talking()), [4, 4, 4], run=run)
    with RunFiles(tmp_path, History(), 0, Progress(Console(file=shown, width=80), "run", 4)) as files:
        simulation.simulate(experiment, tiny.ONE_WORKER, files, None)
    lines = [line for line in shown.getvalue().splitlines() if "is over" in line]
    assert lines == [f"round {round} is over" for round in (1, 2, 3, 4)]
    rows = rows_of(tmp_path, "metrics.csv")
    assert [row["server/round"] for row in rows] == ["", "1.5", "3.5"]
    assert [row["server/once"] for row in rows] == ["", "", "0.5"]


# Stages.


@dataclass
class Switching(LoRA):
    """The head alone for two rounds, then the adapters as well."""

    lora_rank: int = 2

    def segments(self, round: int) -> Collection[str] | None:
        return ["head"] if round <= 2 else None

    def begin_stage(self, before: ServerState, after: ServerState) -> None:
        after.vector.data[after.layout.where(["head"])] = before.vector.detach()


def play(folder: Path, rounds: int) -> simulation.Result:
    """A run of two stages, from its newest checkpoint where there is one."""
    folder.mkdir(exist_ok=True)
    checkpoint, _ = newest_checkpoint(folder / "checkpoint")
    history = History(**checkpoint.meta["history"]) if checkpoint else History()
    run = RunOptions(rounds=rounds, cohort_size=3, evaluate_every_rounds=1, checkpoint_every_rounds=1)
    experiment = tiny.experiment(tiny.build(Switching()), [5, 4, 9, 6], run=run, server=ServerOptions(lr=0.1))
    with RunFiles(folder, history, checkpoint.round if checkpoint else 0, Progress(None, "run", rounds)) as files:
        return simulation.simulate(experiment, tiny.ONE_WORKER, files, checkpoint)


def test_a_stage_changes_what_travels_and_goes_on_where_the_method_says(tmp_path: Path) -> None:
    result = play(tmp_path, 4)
    assert len(result.vector) == 435
    paid = {int(row["round"]): int(row["upload_bytes"]) for row in rows_of(tmp_path, "ledger.csv")}
    assert paid == {round: HEADER_BYTES + 4 * (51 if round <= 2 else 435) for round in (1, 2, 3, 4)}
    setup = tiny.build(Switching()).vector
    assert (result.vector[-51:] != setup[-51:]).all()


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_resumes_in_and_between_stages(stop: int, tmp_path: Path) -> None:
    whole = play(tmp_path / "whole", 4)
    assert len(play(tmp_path / "parts", stop).vector) == (435 if stop == 3 else 51)
    parts = play(tmp_path / "parts", 4)
    assert torch.equal(parts.vector, whole.vector)
    ledgers = [(tmp_path / name / "ledger.csv").read_bytes() for name in ("whole", "parts")]
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("slots", [0, 2])
def test_uploads_that_wait_for_nobody_give_the_same_bits(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client a wave, as a whole backbone would travel, against the whole cohort at once; with and without parts
    that clients keep."""
    for method in (FLASC(lora_rank=2), FedSALoRA(lora_rank=2)):
        together, ledgers = [], []
        for most in (schedule.WAVE_BYTES, 1):
            monkeypatch.setattr(schedule, "WAVE_BYTES", most)
            played = list(rounds(method, 3, slots=slots))
            together.append(played[-1].state)
            ledgers.append([entry for one in played for entry in one.entries])
        assert ledgers[0] == ledgers[1]
        assert torch.equal(together[0].vector, together[1].vector)
        assert together[0].clients.keys() == together[1].clients.keys()
        for client, held in together[0].clients.items():
            for name, kept in held.tensors.items():
                assert torch.equal(kept, together[1].clients[client].tensors[name])
