"""The drill of SLURM: what it writes and refuses; where there is a SLURM, one of its cases, on request all."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.drills import slurm, slurm_cluster

ROOT = Path(__file__).resolve().parents[2]
LACKING = slurm_cluster.missing()


def test_slurm_conf_keeps_to_its_folder_and_to_this_machine(tmp_path: Path) -> None:
    lines = slurm_cluster.configuration(tmp_path, "host", (7001, 7002, 7003)).splitlines()
    keys = [line.partition("=")[0] for line in lines if line and not line.startswith(("NodeName", "PartitionName"))]
    assert len(keys) == len(set(keys))
    assert "SlurmctldHost=host(127.0.0.1)" in lines
    assert "SlurmctldPort=7001" in lines
    assert "FirstJobId=7002" in lines
    assert f"AuthInfo=socket={tmp_path}/munge.socket" in lines
    paths = [line.rpartition("=")[2] for line in lines if "=/" in line]
    assert len(paths) == 7
    assert all(path.startswith(f"{tmp_path}/") for path in paths)
    nodes = [line for line in lines if line.startswith("NodeName=")]
    assert [line.split()[0] for line in nodes] == ["NodeName=n1", "NodeName=n2"]
    assert ["NodeHostname=host NodeAddr=127.0.0.1 Port=700" in line for line in nodes] == [True, True]


def test_the_second_partition_takes_the_place_of_the_first() -> None:
    lines = slurm_cluster.configuration(Path("/x"), "host", (1, 2, 3)).splitlines()
    low, high = (line for line in lines if line.startswith("PartitionName="))
    assert "PriorityTier=1 " in low
    assert "PreemptMode=REQUEUE" in low
    assert "PriorityTier=10 " in high
    assert "PreemptType=preempt/partition_prio" in lines


def test_ports_are_free_and_differ() -> None:
    assert len(set(slurm_cluster._free_ports(3))) == 3


def test_what_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda program, path=None: None)
    assert slurm.main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "missing here: root, munged, slurmctld, slurmd, sbatch, srun; as root: apt-get install" in err


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(["--cases", "all"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def drilled(*options: str) -> str:
    """What the drill says of cases that end well; in a process of its own, as it listens for signals."""
    command = [sys.executable, "-m", "launch.drills.slurm", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(bool(LACKING), reason=f"no SLURM here, missing: {', '.join(LACKING)}")
def test_a_job_that_is_stopped_twice_goes_on_to_the_same_bits() -> None:
    said = drilled("--cases", "stopped_twice")
    assert "SIGUSR1, saved round" in said
    assert "SIGTERM, saved round" in said
    assert said.count("; same bits (") == 1


@pytest.mark.slow
@pytest.mark.skipif(bool(LACKING), reason=f"no SLURM here, missing: {', '.join(LACKING)}")
def test_all_of_it() -> None:
    assert drilled().count("; same bits (") == len(slurm.CASES)
