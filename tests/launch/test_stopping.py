"""A run that is asked to stop saves what it has, says so, and goes on to the same end."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from fedsim import simulation
from launch import experiment
from launch.__main__ import main
from launch.drills.outcome import bits
from launch.drills.workers import kill, launch, run, wait
from tests.battery import FEW_DIGITS

OPTIONS = [*FEW_DIGITS, "--method", "FedSALoRA", "--checkpoint_every_rounds", "50"]
"""Whose clients keep parts of their own; nothing but the stop makes a checkpoint."""


def signal_in_round(monkeypatch: pytest.MonkeyPatch, round: int, number: signal.Signals) -> None:
    """Sends this process a signal while a round runs."""
    original = simulation.sample_cohort
    drawn = []

    def sample_cohort(*arguments: object) -> list[int]:
        drawn.append(1)
        if len(drawn) == round:
            os.kill(os.getpid(), number)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(simulation, "sample_cohort", sample_cohort)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 130)],
    ids=lambda value: str(value),
)
def test_a_signal_ends_the_run_behind_its_round(
    number: signal.Signals,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(["run", *OPTIONS, "--run_dir", str(whole)]) == 0
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with monkeypatch.context() as patch:
        signal_in_round(patch, 4, number)
        assert main(["run", *OPTIONS, "--run_dir", str(stopped)]) == status
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"fedsim: stopped by {number.name}, and saved; --resume auto goes on"
    assert (stopped / "PREEMPTED").read_text() == f"{number.name}\n"
    assert [path.name for path in (stopped / "checkpoint").glob("round-*")] == ["round-000004"]
    assert not (stopped / "summary.json").exists()
    assert not (stopped / "DONE").exists()
    assert main(["run", *OPTIONS, "--run_dir", str(stopped), "--resume", "auto"]) == 0
    assert not (stopped / "PREEMPTED").exists()
    assert (stopped / "DONE").exists()
    assert bits(stopped) == bits(whole)


def test_a_signal_before_the_first_round_leaves_a_run_that_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a marker, so that a batch job is queued again, and no checkpoint."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(["run", *OPTIONS, "--run_dir", str(whole)]) == 0
    build = experiment.build

    def signalled(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "build", signalled)
        assert main(["run", *OPTIONS, "--run_dir", str(stopped)]) == 85
    assert (stopped / "PREEMPTED").read_text() == "SIGTERM\n"
    assert not (stopped / "checkpoint").exists()
    assert main(["run", *OPTIONS, "--run_dir", str(stopped), "--resume", "auto"]) == 0
    assert bits(stopped) == bits(whole)


def test_a_signal_while_an_evaluation_runs_saves_the_round_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which no checkpoint was due; the evaluation is made again."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(["run", *OPTIONS, "--run_dir", str(whole)]) == 0
    evaluate = simulation.evaluate

    def signalled(*arguments: object) -> simulation.Result:
        if arguments[2] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(simulation, "evaluate", signalled)
        assert main(["run", *OPTIONS, "--run_dir", str(stopped)]) == 85
    assert [path.name for path in (stopped / "checkpoint").glob("round-*")] == ["round-000003"]
    assert main(["run", *OPTIONS, "--run_dir", str(stopped), "--resume", "auto"]) == 0
    assert bits(stopped) == bits(whole)


def test_a_signal_in_the_last_round_does_not_stop_what_is_nearly_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_in_round(monkeypatch, 6, signal.SIGTERM)
    assert main(["run", *OPTIONS, "--run_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "DONE").exists()
    assert not (tmp_path / "run" / "PREEMPTED").exists()


def test_one_workers_signal_stops_all_and_other_workers_go_on(tmp_path: Path) -> None:
    """SIGUSR1 to the worker that is no server; three workers finish the run."""
    long = [*OPTIONS, "--rounds", "30"]
    assert main(["run", *long, "--run_dir", str(tmp_path / "whole")]) == 0
    stopped, said = tmp_path / "stopped", tmp_path / "said"
    launcher = launch(2, run, "run", *long, "--run_dir", str(stopped), said=said)
    _wait_for(stopped / "metrics.csv")
    workers = sorted(psutil.Process(launcher.pid).children(), key=lambda process: process.pid)
    workers[-1].send_signal(signal.SIGUSR1)
    assert wait(launcher, 120) == 1
    assert (stopped / "PREEMPTED").exists(), said.read_text()
    assert len(list((stopped / "checkpoint").glob("round-*"))) == 1
    assert "Connection closed" not in said.read_text()
    launcher = launch(3, run, "run", *long, "--run_dir", str(stopped), "--resume", "auto", said=said)
    assert wait(launcher, 120) == 0, said.read_text()
    assert bits(stopped) == bits(tmp_path / "whole")


def test_a_round_that_takes_too_long_is_dropped(tmp_path: Path) -> None:
    """Also by the worker that waits in a collective for the one that trains: of two, one has the only client."""
    run_dir, said = tmp_path / "run", tmp_path / "said"
    slow = ["--client.local_epochs", "100000", "--cohort_size", "1", "--stop_within_seconds", "1"]
    launcher = launch(2, run, "run", *OPTIONS, *slow, "--run_dir", str(run_dir), said=said)
    _wait_for(run_dir / "metrics.csv")
    time.sleep(2)
    started = time.monotonic()
    for worker in psutil.Process(launcher.pid).children():
        worker.send_signal(signal.SIGTERM)
    assert wait(launcher, 60) == 1
    assert time.monotonic() - started < 30
    assert (run_dir / "PREEMPTED").read_text() == "SIGTERM\n", said.read_text()
    assert "the round was not done in 1 s and is dropped; --resume auto goes on" in said.read_text()
    kill(launcher)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()
