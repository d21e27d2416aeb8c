"""Real workers that are killed or go wrong; `tests/test_methods_runs.py` has the bits of those that do not."""

import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.drills.outcome import bits
from launch.drills.workers import kill, launch, run, wait


def test_a_killed_run_resumes_on_other_workers_with_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of a run on two workers, launcher and all; three go on from its checkpoint."""
    options = ["--cohort_size", "6", "--evaluate_every_rounds", "3", "--checkpoint_every_rounds", "2"]
    long = [*options, "--rounds", "30"]
    assert main(["run", *long, "--run_dir", str(tmp_path / "whole")]) == 0
    killed, said = tmp_path / "killed", tmp_path / "said"
    launcher = launch(2, run, "run", *long, "--run_dir", str(killed), said=said)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint" / "round-000006").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    kill(launcher)
    assert (killed / "checkpoint" / "round-000006").exists(), said.read_text()
    assert not (killed / "summary.json").exists(), "the run ended before it was killed: make it longer"
    launcher = launch(3, run, "run", *long, "--run_dir", str(killed), "--resume", "auto", said=said)
    assert wait(launcher, 120) == 0, said.read_text()
    assert bits(killed) == bits(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "said", "status"),
    [
        (("--run_dir", "{foreign}"), "holds something that is no run", 2),
        (("--run_dir", "{new}", "--client.lr", "1e30", "--on_bad_client", "fail"), "values are not finite", 1),
    ],
    ids=["refused by the server worker alone", "a client diverges on its worker"],
)
def test_one_worker_says_in_one_line_what_went_wrong(
    options: tuple[str, ...], said: str, status: int, tmp_path: Path
) -> None:
    """The others neither hang nor add tracebacks of broken connections."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    given = [option.format(foreign=tmp_path / "foreign", new=tmp_path / "new") for option in options]
    assert wait(launch(2, run, "run", "--rounds", "3", *given, said=tmp_path / "said"), 120) == 1
    shown = (tmp_path / "said").read_text()
    ours = [line for line in shown.splitlines() if line.startswith("fedsim: ")]
    assert 1 <= len(ours) <= 2  # two where both workers' clients diverged
    assert all(said in line for line in ours)
    assert f"exitcode: {status}" in shown or f"exitcode  : {status}" in shown
    assert "Connection closed" not in shown
