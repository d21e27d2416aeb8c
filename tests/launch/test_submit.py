"""`fedsim submit`, with a sbatch of our own on the PATH: what it is called with, what is said, and what is refused."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.submit import SCRIPTS

SBATCH = f"""#!{sys.executable}
import json, os, sys
names = ("FEDSIM_SLURM", "PYTHON", "WORKERS")
variables = {{name: os.environ[name] for name in names if name in os.environ}}
json.dump([sys.argv[1:], variables, os.getcwd()], open("asked.json", "w"))
print("a word of the cluster's own, as some have")
print("4711;lab")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with the fake."""
    (tmp_path / "bin").mkdir()
    fake(tmp_path, SBATCH)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("FEDSIM_SLURM", "PYTHON", "WORKERS", "RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fake(here: Path, body: str) -> None:
    (here / "bin" / "sbatch").write_text(body)
    (here / "bin" / "sbatch").chmod(0o755)


def asked(here: Path) -> Any:
    return json.loads((here / "asked.json").read_text())


def test_a_run_is_handed_over_as_it_was_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes", "2", "--tasks_per_node", "3", "--partition", "gpu", "--time", "4:00:00"]
    assert main(["submit", *options, "--", "--config", "digits", "--rounds", "200"]) == 0
    arguments, variables, folder = asked(here)
    assert arguments == [
        *("--parsable", "--export=ALL", "--nodes=2", "--ntasks-per-node=3", "--cpus-per-task=1", "--partition=gpu"),
        *("--time=4:00:00", str(SCRIPTS / "fedsim.sbatch"), "--config", "digits", "--rounds", "200"),
    ]
    assert variables == {"FEDSIM_SLURM": str(SCRIPTS), "PYTHON": sys.executable}
    assert Path(folder) == here
    assert capsys.readouterr().out.splitlines() == [
        "job 4711: runs/slurm-4711",
        "follow: tail -F slurm-4711.out",
        "state:  squeue --job=4711",
        "cancel: scancel 4711",
    ]


def test_the_scripts_stand_beside_the_package() -> None:
    assert {path.name for path in SCRIPTS.iterdir()} >= {"common.sh", "fedsim.sbatch", "fedsim_torchrun.sbatch"}


@pytest.mark.parametrize(
    ("options", "keys", "expected"),
    [
        ([], [], ["--ntasks-per-node=1", "--cpus-per-task=1"]),
        ([], ["--threads_per_worker", "4"], ["--ntasks-per-node=1", "--cpus-per-task=4"]),
        (["--gpus_per_node", "4"], [], ["--ntasks-per-node=4", "--cpus-per-task=1", "--gpus-per-node=4"]),
        (["--gpus-per-node=4", "--ntasks-per-node=2"], [], ["--ntasks-per-node=2", "--gpus-per-node=4"]),
        (["--cpus_per_task", "8"], [], ["--cpus-per-task=8"]),
        (["--sbatch=--account=lab", "--sbatch=--mem=32G"], [], ["--account=lab", "--mem=32G"]),
    ],
)
def test_workers_and_their_cpus(options: list[str], keys: list[str], expected: list[str], here: Path) -> None:
    assert main(["submit", *options, "--", *keys]) == 0
    arguments, variables, _ = asked(here)
    assert {*expected} <= {*arguments}
    assert arguments[len(arguments) - len(keys) - 1] == str(SCRIPTS / "fedsim.sbatch")
    assert "WORKERS" not in variables


def test_a_torchrun_is_one_task_with_the_cpus_of_its_workers(here: Path) -> None:
    assert main(["submit", "--torchrun", "--gpus_per_node", "4", "--cpus_per_task", "2"]) == 0
    arguments, variables, _ = asked(here)
    assert {"--ntasks-per-node=1", "--cpus-per-task=8", "--gpus-per-node=4"} <= {*arguments}
    assert arguments[-1] == str(SCRIPTS / "fedsim_torchrun.sbatch")
    assert variables["WORKERS"] == "4"


def test_an_array_is_a_run_a_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--array", "3-7%2", "--", "--seed", "%a"]) == 0
    assert {"--array=3-7%2", "--seed", "%a"} <= {*asked(here)[0]}
    said = capsys.readouterr().out
    assert said.startswith("job 4711: runs/slurm-4711-%a\n")
    assert "tail -F slurm-4711_%a.out" in said


def test_a_run_directory_of_ones_own_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--", "--run_dir=runs/mine"]) == 0
    assert capsys.readouterr().out.startswith("job 4711: runs/mine\n")


def test_an_output_of_ones_own_is_not_misnamed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--sbatch=--output=log"]) == 0
    assert "follow" not in capsys.readouterr().out


def test_a_dry_run_shows_the_command_and_needs_no_sbatch(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(here))
    assert main(["submit", "--dry_run", "--time", "1-0", "--", "--run_dir", "a folder"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"FEDSIM_SLURM={SCRIPTS} PYTHON={sys.executable} sbatch --parsable")
    assert said.endswith("fedsim.sbatch --run_dir 'a folder'\n")
    assert not (here / "asked.json").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--", "--ruonds", "3"], ["ruonds", "did you mean", "rounds"]),
        (["--", "--config", "digist"], ["digist", "digits"]),
        (["--", "--rounds", "0"], ["rounds is 0"]),
        (["--rounds", "3"], ["--rounds is no option of fedsim submit", "behind --"]),
        (["--", "--nodes", "2"], ["--nodes stands behind --", "fedsim submit --nodes"]),
        (["digits"], ["digits is no option"]),
        (["--nodes", "0"], ["--nodes is 0", "1 or more"]),
        (["--nodes", "two"], ["--nodes", "two"]),
        (["--tasks_per_node", "4", "--gpus_per_node", "2"], ["4", "2", "a worker a GPU"]),
        (["--array", "all", "--", "--seed", "%a"], ["--array is all"]),
        (["--array", "0-3"], ["the same", "--seed %a"]),
        (["--array", "0-3", "--", "--seed", "%a", "--run_dir", "mine"], ["--run_dir", "%a"]),
        (["--array", "0-3", "--", "--rounds", "%a"], ["rounds is 0"]),
    ],
    ids=" ".join,
)
def test_what_cannot_run_is_not_queued(
    argv: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert {path.name for path in here.iterdir()} == {"bin"}


def test_without_slurm_it_says_so(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(here))
    assert main(["submit"]) == 2
    assert capsys.readouterr().err.startswith("fedsim: sbatch is not on the PATH; ")


def test_what_sbatch_refuses_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(here, "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; echo 'sbatch: error: failed' >&2; exit 1\n")
    assert main(["submit", "--partition", "nowhere"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "sbatch: error: invalid partition sbatch: error: failed" in err


def test_help_says_where_the_runs_keys_stand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaves:
        main(["submit", "--help"])
    assert leaves.value.code == 0
    said = capsys.readouterr().out
    assert "-- [--config FILE] [--KEY VALUE ...]" in said
    assert "--seed %a" in said
