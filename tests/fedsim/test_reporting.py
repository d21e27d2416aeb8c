import csv
import errno
import io
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from fedsim.checkpoint import newest_checkpoint
from fedsim.history import History
from fedsim.ledger import Entry
from fedsim.method import ServerState
from fedsim.progress import Progress
from fedsim.reporting import RunFiles, peak_memory_bytes, write_atomically
from fedsim.simulation import simulate
from methods.flasc import FLASC
from tests import tiny

HIGHER = {"accuracy": True, "loss": False}
IDENTITY = {"name": "FLASC 1/4", "method": "FLASC", "seed": 0, "rounds": 3}
TOTALS = ["upload_bytes", "download_bytes", "upload_value_bytes", "download_value_bytes"]


@contextmanager
def files_in(folder: Path, history: History | None = None, round: int = 0) -> Iterator[RunFiles]:
    with RunFiles(folder, history or History(), round, Progress(None, "run", 3)) as files:
        yield files


def train(files: RunFiles, round: int, logged: dict[str, float] | None = None) -> None:
    """A round of two clients that send 10 and 30 bytes."""
    for client, size in ((1, 10), (2, 30)):
        value = {name: v * client for name, v in (logged or {}).items()}
        files.trained(Entry(round, client, 0, client, size, 100, size // 5, 20), value)
    files.round_done(round, {}, (), 0.0)


def evaluate(files: RunFiles, round: int) -> None:
    """Metrics that follow from the round."""
    files.evaluated(round, {"accuracy": round / 10, "loss": 1 - round / 10, "full/accuracy": round / 5})


def play(files: RunFiles, rounds: range, logged: dict[str, float] | None = None) -> None:
    """Rounds and their evaluations; round 0 is before any training."""
    for round in rounds:
        if round:
            train(files, round, logged)
        evaluate(files, round)


def kept_by(files: RunFiles) -> History:
    """What a checkpoint written now would give back."""
    return History(**json.loads(json.dumps(files.history())))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curves(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_metrics_have_a_row_per_evaluation_from_round_zero(tmp_path: Path) -> None:
    with files_in(tmp_path) as files:
        play(files, range(3))
    found = table(tmp_path / "metrics.csv")
    assert list(found[0]) == ["round", *TOTALS, "accuracy", "loss", "full/accuracy", "seconds"]
    assert [row["round"] for row in found] == ["0", "1", "2"]
    assert [row["upload_bytes"] for row in found] == ["0", "40", "80"]
    assert [row["download_value_bytes"] for row in found] == ["0", "160", "320"]
    assert [float(row["full/accuracy"]) for row in found] == [0, 0.2, 0.4]


def test_columns_of_training_appear_later_and_seconds_stay_last(tmp_path: Path) -> None:
    """Before the first round nobody has trained: the cell is empty, not zero."""
    with files_in(tmp_path) as files:
        play(files, range(3), {"train/loss": 3.0})
    found = table(tmp_path / "metrics.csv")
    assert list(found[0])[-2:] == ["train/loss", "seconds"]
    mean = (1 * 3.0 + 2 * 6.0) / 3  # over examples: client 2 has two
    assert [row["train/loss"] for row in found] == ["", str(mean), str(mean)]


def test_what_clients_log_is_a_mean_since_the_last_evaluation(tmp_path: Path) -> None:
    with files_in(tmp_path) as files:
        for round, value in ((1, 1.0), (2, 4.0), (3, 9.0)):
            files.trained(Entry(round, 0, 0, round, 1, 1, 1, 1), {"train/loss": value})
            if round > 1:
                files.evaluated(round, {"accuracy": 0.5})
    assert [float(row["train/loss"]) for row in table(tmp_path / "metrics.csv")] == [(1 + 8) / 3, 9]


def test_a_modules_own_names_never_pass_for_the_evaluations(tmp_path: Path) -> None:
    """A user's module may log "accuracy" while it trains."""
    with files_in(tmp_path) as files:
        play(files, range(2), {"accuracy": 0.9, "val/f1": 0.7})
    row = table(tmp_path / "metrics.csv")[-1]
    assert float(row["accuracy"]) == 0.1
    assert float(row["train/accuracy"]) == pytest.approx(1.5)
    assert curves(tmp_path, "eval/accuracy")[-1] == (1, pytest.approx(0.1))
    assert curves(tmp_path, "train/accuracy") == [(1, pytest.approx(1.5))]
    assert curves(tmp_path, "train/val/f1") == [(1, pytest.approx(0.7 * 5 / 3))]


def test_curves_are_drawn_against_rounds_and_against_uploaded_bytes(tmp_path: Path) -> None:
    with files_in(tmp_path) as files:
        play(files, range(4), {"train/loss": 3.0})
    accuracy = [pytest.approx(round / 10) for round in range(4)]
    by_bytes = tmp_path / "by_upload_bytes"
    assert curves(tmp_path, "eval/accuracy") == list(zip(range(4), accuracy, strict=True))
    assert curves(by_bytes, "eval_by_upload_bytes/accuracy") == list(zip((0, 40, 80, 120), accuracy, strict=True))
    assert [step for step, _ in curves(tmp_path, "eval_full/accuracy")] == [0, 1, 2, 3]
    assert [step for step, _ in curves(by_bytes, "eval_full_by_upload_bytes/accuracy")] == [0, 40, 80, 120]
    assert [step for step, _ in curves(tmp_path, "train/loss")] == [1, 2, 3]
    assert curves(tmp_path, "communication/upload_MB")[-1] == (3, pytest.approx(120e-6))


@pytest.mark.parametrize("killed_after", [2, 3, 4])
def test_a_resumed_run_neither_doubles_nor_misses_anything(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint stands behind round 2, before its evaluation; what came after it is dropped and played again."""
    with files_in(tmp_path) as files:
        play(files, range(2), {"train/loss": 3.0})
        train(files, 2, {"train/loss": 3.0})
        kept = kept_by(files)
        evaluate(files, 2)
        play(files, range(3, killed_after + 1), {"train/loss": 3.0})
    # Event files are read in the order of their names: second, process, counter. A resumed run is another process.
    monkeypatch.setattr(os, "getpid", lambda: 999_999_999)
    with files_in(tmp_path, kept, 2) as files:
        evaluate(files, 2)
        play(files, range(3, 6), {"train/loss": 3.0})
        files.finish(IDENTITY, HIGHER, {})
    assert [row["round"] for row in table(tmp_path / "metrics.csv")] == ["0", "1", "2", "3", "4", "5"]
    entered = Counter((row["round"], row["client"]) for row in table(tmp_path / "ledger.csv"))
    assert entered == Counter({(str(round), str(client)): 1 for round in range(1, 6) for client in (1, 2)})
    assert curves(tmp_path, "eval/accuracy") == [(round, pytest.approx(round / 10)) for round in range(6)]
    assert [step for step, _ in curves(tmp_path, "train/loss")] == list(range(1, 6))
    by_bytes = curves(tmp_path / "by_upload_bytes", "eval_by_upload_bytes/accuracy")
    assert by_bytes == [(40 * round, pytest.approx(round / 10)) for round in range(6)]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["upload_bytes"] == 200
    assert summary["best"]["accuracy"] == 0.5


def test_means_of_training_survive_a_checkpoint_between_two_evaluations(tmp_path: Path) -> None:
    """Round 1 is in no row yet when the checkpoint is written."""
    with files_in(tmp_path) as files:
        files.trained(Entry(1, 0, 0, 1, 1, 1, 1, 1), {"train/loss": 1.0})
        kept = kept_by(files)
    with files_in(tmp_path, kept, 1) as files:
        files.trained(Entry(2, 0, 0, 3, 1, 1, 1, 1), {"train/loss": 5.0})
        files.evaluated(2, {"accuracy": 0.5})
    assert [row["train/loss"] for row in table(tmp_path / "metrics.csv")] == [str((1 + 15) / 4)]


def test_what_the_server_found_out_is_a_mean_over_rounds_that_survives_a_checkpoint(tmp_path: Path) -> None:
    """Whatever number of clients a round had; and a curve of its own."""
    with files_in(tmp_path) as files:
        files.round_done(1, {"product_error": 0.25}, (), 1.0)
        kept = kept_by(files)
    with files_in(tmp_path, kept, 1) as files:
        files.round_done(2, {"product_error": 0.75, "rank": 4.0}, (), 2.0)
        files.evaluated(2, {"accuracy": 0.5})
        files.round_done(3, {}, (), 0.5)
        files.evaluated(3, {"accuracy": 0.5})
        files.finish(IDENTITY, {"accuracy": True}, {})
    rows = table(tmp_path / "metrics.csv")
    assert [(row["server/product_error"], row["server/rank"]) for row in rows] == [("0.5", "4.0"), ("", "")]
    assert curves(tmp_path, "server/product_error") == [(2, 0.5)]
    assert json.loads((tmp_path / "summary.json").read_text())["server_seconds"] == 3.5


def test_notes_are_lines_on_the_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    with RunFiles(tmp_path, History(), 0, Progress(Console(file=shown, width=20), "run", 3)) as files:
        files.round_done(1, {}, ["a line that is longer than [the terminal]", "and another"], 0.0)
    assert shown.getvalue() == "a line that is longer than [the terminal]\nand another\n"


def test_seconds_go_on_where_the_checkpoint_stopped(tmp_path: Path) -> None:
    with files_in(tmp_path, History(seconds=1000.0, totals=dict.fromkeys(TOTALS, 0)), 1) as files:
        files.evaluated(2, {"accuracy": 0.5})
        assert files.history()["seconds"] > 1000
    assert float(table(tmp_path / "metrics.csv")[0]["seconds"]) >= 1000


def test_the_summary_holds_against_the_contract(tmp_path: Path) -> None:
    """The keys and sums that scripts rely on."""
    with files_in(tmp_path) as files:
        play(files, range(4), {"train/loss": 3.0})
        files.finish(IDENTITY, HIGHER, {"client.lr": 0.1, "method": "FLASC", "none": None})
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert {name: summary[name] for name in IDENTITY} == IDENTITY
    assert summary["final"] == {"accuracy": 0.3, "loss": 0.7}
    assert summary["best"] == {"accuracy": 0.3, "loss": 0.7}
    assert summary["higher_is_better"] == HIGHER
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["clients_per_second"] > 0
    ledger, metrics = table(tmp_path / "ledger.csv"), table(tmp_path / "metrics.csv")
    for name in ("upload_bytes", "download_bytes"):
        assert sum(int(row[name]) for row in ledger) == summary[name] == int(metrics[-1][name])
    for name in ("upload", "download"):
        assert 4 * sum(int(row[f"{name}_values"]) for row in ledger) == summary[f"{name}_value_bytes"]
    assert "client.lr" in json.dumps(hyperparameters(tmp_path))


def hyperparameters(folder: Path) -> list[str]:
    """The names in TensorBoard's table of hyper-parameters."""
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    return [name for name in ("client.lr", "method", "none") if name.encode() in content]


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_wants(tmp_path: Path) -> None:
    with files_in(tmp_path) as files:
        for round, (accuracy, loss) in enumerate([(0.5, 2.0), (0.8, 1.0), (0.7, 1.5)]):
            files.evaluated(round, {"accuracy": accuracy, "loss": loss})
        files.finish(IDENTITY, HIGHER, {})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] == {"accuracy": 0.8, "loss": 1.0}
    assert summary["final"] == {"accuracy": 0.7, "loss": 1.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_loss_that_is_not_finite_is_null_and_an_empty_cell(value: float, everywhere: bool, tmp_path: Path) -> None:
    """JSON knows no NaN, and a run must not lose its summary at the end because its loss overflowed."""
    with files_in(tmp_path) as files:
        files.evaluated(0, {"accuracy": 0.5, "loss": value if everywhere else 2.0})
        files.evaluated(1, {"accuracy": 0.1, "loss": value})
        files.finish(IDENTITY, HIGHER, {})
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert summary["final"] == {"accuracy": 0.1, "loss": None}
    assert summary["best"] == {"accuracy": 0.5, "loss": None if everywhere else 2.0}
    assert table(tmp_path / "metrics.csv")[-1]["loss"] == ""


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    write_atomically(path, "whole\n")

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "half")
    assert path.read_text() == "whole\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ahead", [0, 60, 86_400])
def test_curves_stay_in_order_though_the_clock_was_ahead(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads files in the order of the times that they name: a run stopped twice, its clock set right."""
    real = time.time
    history = History()
    for turn, offset in enumerate((ahead, ahead, 0)):
        monkeypatch.setattr(time, "time", lambda offset=offset: real() + offset)
        with files_in(tmp_path, history, 2 * turn) as files:
            evaluate(files, 2 * turn)
            play(files, range(2 * turn + 1, 2 * turn + 2))
            train(files, 2 * turn + 2)
            history = kept_by(files)  # behind a round, before its evaluation, which the next turn makes again
            evaluate(files, 2 * turn + 2)
    for tag, folder in (("eval/accuracy", tmp_path), ("eval_by_upload_bytes/accuracy", tmp_path / "by_upload_bytes")):
        steps = [step for step, _ in curves(folder, tag)]
        assert steps == sorted(set(steps))
        assert len(steps) == 7


def test_a_full_disk_under_the_curves_is_the_runs_error_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes in a thread, whose traceback would stand on the terminal beside the one line."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run() -> None:
        with files_in(tmp_path) as files:
            monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
            play(files, range(3))
            files.history()

    hook = threading.excepthook
    with pytest.raises(OSError, match="No space left"):
        run()
    assert capsys.readouterr().err == ""
    assert threading.excepthook is hook


def test_memory_is_in_bytes() -> None:
    assert 50 * 2**20 < peak_memory_bytes() < 2**40


@dataclass
class Killed(FLASC):
    """FLASC in a process that dies at the start of a round."""

    at_round: int = 0

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        if round == self.at_round:
            raise KeyboardInterrupt
        return {}


def run(folder: Path, at_round: int = 0) -> None:
    """Five rounds, evaluated every third and kept every second, from the newest checkpoint where there is one."""
    folder.mkdir(exist_ok=True)
    built = tiny.build(Killed(lora_rank=2, upload_density=0.25, at_round=at_round))
    whole = tiny.experiment(built, [5, 0, 9, 6, 7])
    experiment = replace(whole, run=replace(whole.run, rounds=5, evaluate_every_rounds=3, checkpoint_every_rounds=2))
    checkpoint, _ = newest_checkpoint(folder / "checkpoint")
    history = History(**checkpoint.meta["history"]) if checkpoint else History()
    with files_in(folder, history, checkpoint.round if checkpoint else 0) as files:
        simulate(experiment, tiny.ONE_WORKER, files, checkpoint)


@pytest.mark.parametrize("at_round", [1, 3, 4, 5])
def test_a_run_killed_and_resumed_writes_the_same_bits(at_round: int, tmp_path: Path) -> None:
    """Every column but seconds; with evaluations and checkpoints in different rounds, where means are half full."""
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", at_round)
    run(tmp_path / "killed")
    ledgers = [(tmp_path / name / "ledger.csv").read_bytes() for name in ("whole", "killed")]
    assert ledgers[0] == ledgers[1]
    rows = [table(tmp_path / name / "metrics.csv") for name in ("whole", "killed")]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]
    assert [row["round"] for row in rows[0]] == ["0", "3", "5"]


def test_clients_without_examples_are_not_counted_as_trained(tmp_path: Path) -> None:
    with files_in(tmp_path) as files:
        train(files, 1)
        files.trained(Entry(1, 9, 0, 0, 0, 0, 0, 0), {})
        assert files.history()["clients"] == 2
