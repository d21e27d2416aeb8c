"""`--client.pack auto`: measured once, written down, and the same on every worker and after a stop."""

import csv
from pathlib import Path

import pytest
import yaml

import launch.trainers
from fedsim.pack_choice import StepSeconds
from launch.__main__ import main
from tests.battery import FEW_DIGITS

AUTO = [*FEW_DIGITS, "--method", "FLASC", "--client.pack", "auto"]


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def pack_of(run: Path) -> object:
    return yaml.safe_load((run / "config.yaml").read_text())["client"]["pack"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for the clock: three slots for the price of one and a half. Says how often it was asked."""
    asked: list[int] = []

    def measure(parts: object, most: int) -> StepSeconds:
        asked.append(most)
        return StepSeconds({16: 1.0}, {2: 1.5, 3: 1.5, 5: 4.0})

    monkeypatch.setattr(launch.trainers, "measure", measure)
    return asked


def test_the_choice_is_written_down_and_kept_on_resume(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts, given = tmp_path / "whole", tmp_path / "parts", tmp_path / "given"
    assert main(["run", *AUTO, "--run_dir", str(whole)]) == 0
    assert (
        "client.pack auto: 3 (client steps a second by slots: 1: 1, 2: 1.33, 3: 2, 5: 1.25)" in capsys.readouterr().out
    )
    assert main(["run", *AUTO, "--rounds", "4", "--run_dir", str(parts)]) == 0
    assert measured == [5, 5]
    assert main(["run", *AUTO, "--run_dir", str(parts), "--resume", "auto"]) == 0
    assert measured == [5, 5], "what a run chose is not chosen again"
    assert main(["run", *AUTO[:-1], "3", "--run_dir", str(given)]) == 0
    for run in (parts, given):
        assert pack_of(run) == 3
        for name in ("metrics.csv", "ledger.csv"):
            assert lines(run / name) == lines(whole / name)


def test_measuring_changes_nothing_of_the_run(tmp_path: Path) -> None:
    """With the real clock, whatever it says: the run is that of the number it chose."""
    assert main(["run", *AUTO, "--rounds", "2", "--run_dir", str(tmp_path / "auto")]) == 0
    chosen = str(pack_of(tmp_path / "auto"))
    assert 1 <= int(chosen) <= 5
    assert main(["run", *AUTO[:-1], chosen, "--rounds", "2", "--run_dir", str(tmp_path / "given")]) == 0
    assert lines(tmp_path / "auto" / "metrics.csv") == lines(tmp_path / "given" / "metrics.csv")


def test_what_cannot_be_packed_is_not_measured(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*FEW_DIGITS, "--method", "FullFineTuning", "--client.pack", "auto", "--rounds", "1"]
    options += ["--client.compile", "true"]  # of which nothing is left, either
    assert main(["run", *options, "--run_dir", str(tmp_path / "run")]) == 0
    assert "client.pack auto falls back to one client after another" in capsys.readouterr().out
    assert (measured, pack_of(tmp_path / "run")) == ([], 1)


def test_a_method_of_stages_packs_where_it_can(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        *FEW_DIGITS,
        "--method",
        "SLoRA",
        "--method.stage_one_rounds",
        "1",
        "--client.pack",
        "auto",
        "--rounds",
        "2",
    ]
    assert main(["run", *options, "--run_dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "client.pack 3 is for a later stage: in the first one " in said
    assert "trains and belongs to no nn.Linear" in said
    assert (measured, pack_of(tmp_path / "run")) == ([5], 3)
