"""`fedsim sweep --optuna`: chosen by Optuna, run and judged by us, and gone on with."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsim import simulation
from fedsim.checkpoint import save_checkpoint
from launch.__main__ import main
from launch.sweeps import optuna_study, runner
from launch.sweeps.plan import PlannedRun
from launch.sweeps.runner import Outcome
from tests.launch.test_sweep import TINY, contents, here, table

__all__ = ["here"]
optuna = pytest.importorskip("optuna", reason="Optuna is not installed")
SPACE = {
    "method": ["LoRA", "FLASC"],
    "client": {"lr": {"low": "1e-3", "high": "1e-1", "log": True}},
    "method.lora_rank": {"low": 1, "high": 3},
}


def write(here: Path, **entries: Any) -> None:
    (here / "s.yaml").write_text(json.dumps(entries))


def sweep(out: str, trials: int, *options: str) -> int:
    return main(["sweep", "--config", "s.yaml", "--out", out, "--optuna", str(trials), *options, "--", *TINY])


def study(out: Path) -> Any:
    return optuna.load_study(study_name="fedsim", storage=f"sqlite:///{out / 'optuna.db'}")


def test_trials_are_judged_on_what_is_held_out_and_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, space=SPACE, seeds=[0, 1])
    assert sweep("out", 2, "--sampler", "RandomSampler") == 0
    assert "best of 2 trials: " in capsys.readouterr().out
    found = study(here / "out").trials
    rows = table(here / "out")
    assert (len(found), len(rows)) == (2, 4)
    for at, trial in enumerate(found):
        assert {*trial.params} == {"method", "client.lr", "method.lora_rank"}
        assert 1e-3 <= trial.params["client.lr"] <= 1e-1
        assert trial.params["method.lora_rank"] in (1, 2, 3)
        own = rows[2 * at : 2 * at + 2]
        assert [row["method.lora_rank"] for row in own] == [str(trial.params["method.lora_rank"])] * 2
        last = [(here / "out" / row["run"] / "metrics.csv").read_text().splitlines() for row in own]
        held_out = [float(lines[-1].split(",")[lines[0].split(",").index("held_out/accuracy")]) for lines in last]
        assert trial.values == [pytest.approx(sum(held_out) / 2)]
        tests = [float(row["final/accuracy"]) for row in own]
        assert trial.user_attrs["test"] == pytest.approx(sum(tests) / 2)

    before = contents(here / "out")
    assert sweep("out", 2, "--sampler", "RandomSampler") == 0
    assert contents(here / "out") == before
    assert main(["sweep", "--config", "s.yaml", "--out", "out", "--optuna", "3", "--", *TINY, "--rounds", "3"]) == 2
    assert "holds trials of other settings" in capsys.readouterr().err
    write(here, space={**SPACE, "method": ["LoRA", "FFALoRA"]}, seeds=[0, 1])
    assert sweep("out", 3, "--sampler", "RandomSampler") == 2
    assert "is of another space" in capsys.readouterr().err


def test_a_search_that_was_stopped_chooses_as_one_that_was_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here, space=SPACE)
    assert sweep("whole", 2) == 0
    stopped: list[Path] = []

    def stop(folder: Path, checkpoint: simulation.Checkpoint) -> None:
        save_checkpoint(folder, checkpoint)
        if folder not in stopped and len(stopped) < 2:
            stopped.append(folder)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the thread that listens

    monkeypatch.setattr(simulation, "save_checkpoint", stop)
    assert [sweep("cut", 2) for _ in range(3)] == [85, 85, 0]
    assert (here / "cut" / "sweep.csv").read_text().count("\n") == 3
    whole, cut = ([(row["run"], row["final/accuracy"]) for row in table(here / out)] for out in ("whole", "cut"))
    assert whole == cut


def test_a_trial_that_fails_is_told_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, space={"client.lr": [1e30]}, keys={"on_bad_client": "fail"})
    assert main(["sweep", "--config", "s.yaml", "--optuna", "1", "--", *TINY, "--client.max_steps", "3"]) == 1
    assert "failed: runs/s/client.lr=1e+30-s0: " in capsys.readouterr().out
    assert [trial.state.name for trial in study(here / "runs/s").trials] == ["FAIL"]


def test_a_seed_that_fails_takes_no_other_along(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trial fails; the table has every run's own outcome, also once the search is over and told again."""

    def run_first(runs: Sequence[PlannedRun], *rest: Any) -> list[Outcome]:
        first, second = runs
        return [*runner.run_all([first], *rest), Outcome(second, "no memory")]

    monkeypatch.setattr(optuna_study, "run_all", run_first)
    write(here, space={"client.lr": [0.01]}, seeds=[0, 1])
    for _ in range(2):
        assert sweep("out", 1) == 1
        first, second = table(here / "out")
        assert (first["failure"], second["failure"]) == ("", "no memory")
        assert float(first["final/accuracy"]) >= 0
    assert [trial.state.name for trial in study(here / "out").trials] == ["FAIL"]


@pytest.mark.parametrize(
    ("entries", "options", "words"),
    [
        ({"space": {"client.lr": 3}}, ["--optuna", "1"], "client.lr is 3"),
        ({"space": {"client.lr": {"low": 1, "hihg": 2}}}, ["--optuna", "1"], "expected a list of values, or low and"),
        ({"space": {"client.lr": {"low": 2, "high": 1}}}, ["--optuna", "1"], "client.lr is"),
        ({"space": {"ruonds": [3]}}, ["--optuna", "1"], "did you mean rounds"),
        ({"space": {"rounds": [3, 0]}}, ["--optuna", "1"], "rounds is 0"),
        ({"space": {"rounds": [3]}, "grid": {"rounds": [3]}}, ["--optuna", "1"], "space stands beside grid"),
        ({"space": {"rounds": [3]}}, [], "go together"),
        ({"keys": {"rounds": 3}}, ["--optuna", "1"], "go together"),
        ({"space": {"rounds": [3]}}, ["--optuna", "1", "--sampler", "TPE"], "unknown sampler of Optuna 'TPE'"),
        ({"space": {"rounds": [3]}}, ["--optuna", "1", "--sampler", "GridSampler"], "cannot be made of a seed alone"),
        ({"space": {"rounds": [3]}}, ["--optuna", "0"], "--optuna is 0"),
    ],
    ids=str,
)
def test_what_is_no_search(
    entries: dict[str, Any], options: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here, **entries)
    assert main(["sweep", "--config", "s.yaml", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert [path.name for path in here.iterdir()] == ["s.yaml"]


def test_without_optuna_it_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    write(here, space=SPACE)
    assert sweep("out", 1) == 2
    assert "--optuna needs Optuna, which is not installed; pip install" in capsys.readouterr().err
