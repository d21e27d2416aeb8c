"""`fedsim demo`: runs what is missing, keeps what is finished, reports all."""

from pathlib import Path

import pytest

from fedsim import simulation
from fedsim.checkpoint import save_checkpoint
from launch import demo
from launch.__main__ import main


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own runs, with two rounds each."""
    monkeypatch.setattr(demo, "KEYS", {**demo.KEYS, "rounds": 2, "cohort_size": 3})


def contents(out: Path) -> dict[str, bytes]:
    """What the runs wrote; the report is made again every time."""
    return {str(path): path.read_bytes() for path in out.glob("*/**/*") if path.is_file()}


def test_the_demo_runs_once_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--jobs", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    runs = [f"{run['name']}-s0" for run in demo.RUNS]
    reports = {"report.csv", "report.md", "report.tex", "report.png", "report.svg", "sweep.csv"}
    reports |= {"report_curves.csv", "report_target.png", "report_target.svg"}
    assert {path.name for path in out.iterdir()} == {*runs, *reports}
    assert all((out / run / "summary.json").exists() for run in runs)
    assert (out / "report.png").read_bytes()[1:4] == b"PNG"
    for label in ("LoRA", "FLASC 1/4", "FLASC 1/16", "SparseAdapter 1/4", "Adapter LTH 0.98"):
        assert label in (out / "report.csv").read_text()
        assert label in shown

    before = contents(out)
    assert main(["demo", "--jobs", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(f"{out / run} is finished and stays" in shown for run in runs)
    assert contents(out) == before

    monkeypatch.setattr(demo, "KEYS", {**demo.KEYS, "client.lr": 0.5})
    assert main(["demo", "--jobs", "1", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"fedsim: {out / runs[0]} holds a run with other settings (client.lr was 0.02 and is 0.5); remove it or give "
        "another --out\n"
    )
    assert contents(out) == before


def test_a_demo_that_was_stopped_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that was under way from its checkpoint, those after it from their start."""
    stopped = []

    def stop_once(folder: Path, checkpoint: simulation.Checkpoint) -> None:
        save_checkpoint(folder, checkpoint)
        if not stopped:
            stopped.append(folder)
            raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "save_checkpoint", stop_once)
    assert main(["demo", "--jobs", "1", "--out", str(tmp_path)]) == 130
    assert not list(tmp_path.glob("*/summary.json"))
    assert main(["demo", "--jobs", "1", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*/summary.json"))) == len(demo.RUNS)
    assert (tmp_path / "report.md").exists()
