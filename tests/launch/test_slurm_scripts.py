"""The batch scripts' common part, with commands of our own in SLURM's place: what is run, and when a job goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "launch" / "slurm"
COMMANDS = {
    "scontrol": 'case "$*" in *hostnames*) echo n1 ;; *show*node*) echo "NodeName=n1 NodeAddr=10.0.0.7 x" ;;'
    ' *job*) cat shown ;; *) echo "$@" >> asked ;; esac',
    "scancel": 'echo "$@" >> asked; touch told',
    "srun": 'echo "$@" > ran; while [ -e go_on ] && [ ! -e told ]; do sleep 0.05; done; [ -e told ] && mkdir -p "$DIR"'
    ' && touch "$DIR/PREEMPTED"; exit "${STATUS:-0}"',
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with the commands, where a job runs."""
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(job: Path, script: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    given = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "FEDSIM_SLURM": str(HERE)}
    path = f"{job}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(HERE / script), *options],
        cwd=job,
        env={**given, "DIR": "runs/slurm-41", "PATH": path, "PYTHON": "python", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("script", ["fedsim.sbatch", "fedsim_torchrun.sbatch"])
def test_a_run_goes_to_a_directory_of_the_jobs(script: str, job: Path) -> None:
    keys = ("--rounds", "7", "--seed", "%a")
    assert start(job, script, *keys, SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="3").wait(30) == 0
    ran = (job / "ran").read_text()
    assert "-m launch run --run_dir runs/slurm-40-3 --resume auto --rounds 7 --seed 3" in ran
    assert ("--rdzv_endpoint=10.0.0.7:20041" in ran) == ("torchrun" in script)
    assert not (job / "asked").exists()


def test_outside_an_array_keys_are_what_they_are(job: Path) -> None:
    assert start(job, "fedsim.sbatch", "--run_dir", "%a").wait(30) == 0
    assert (job / "ran").read_text().endswith("--resume auto --run_dir %a\n")


def test_a_task_of_a_sweep_reads_its_keys_from_a_file(job: Path) -> None:
    """And it knows the run directory among them, where the marker will be."""
    (job / "tasks").mkdir()
    (job / "tasks" / "3").write_text("--method.lora_rank=4\n--run_dir=out/a name,with=signs\n")
    (job / "go_on").touch()
    own = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3", "FEDSIM_TASKS": str(job / "tasks")}
    batch = start(job, "fedsim.sbatch", DIR="out/a name,with=signs", STATUS="85", **own)
    while not (job / "ran").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(30) == 85
    assert (job / "ran").read_text().endswith("--method.lora_rank=4 --run_dir=out/a name,with=signs\n")
    assert (job / "asked").read_text().splitlines() == ["--signal=USR1 41_3", "requeue 41_3"]


@pytest.mark.parametrize(
    ("script", "sent"), [("fedsim.sbatch", "--signal=USR1 41"), ("fedsim_torchrun.sbatch", "--signal=TERM 41")]
)
def test_at_the_time_limit_the_run_is_told_and_the_job_queued_again(script: str, sent: str, job: Path) -> None:
    (job / "go_on").touch()
    batch = start(job, script, "--run_dir=mine", DIR="mine", STATUS="85")
    while not (job / "ran").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(30) == 85
    assert (job / "asked").read_text().splitlines() == [sent, "requeue 41"]


def test_of_an_array_one_task_alone_is_told_and_queued_again(job: Path) -> None:
    """The number of the array, which one of its tasks has as its own, would mean all of them."""
    (job / "go_on").touch()
    task = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}
    batch = start(job, "fedsim.sbatch", DIR="runs/slurm-41-3", STATUS="85", **task)
    while not (job / "ran").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(30) == 85
    assert (job / "asked").read_text().splitlines() == ["--signal=USR1 41_3", "requeue 41_3"]


@pytest.mark.parametrize(("came", "status"), [("behind a round", "85"), ("before the first", "143")])
def test_a_preempted_run_that_leaves_in_time_is_queued_again(came: str, status: str, job: Path) -> None:
    """SLURM sends SIGTERM to the step alone; a job that left before it comes for the nodes it does not queue again.
    A run that SIGTERM met while Python started leaves no marker."""
    (job / "shown").write_text(
        "JobId=41 JobState=RUNNING Reason=None PreemptTime=2026-01-02T03:04:05 SuspendTime=None\n"
    )
    if came == "behind a round":
        (job / "told").touch()
    assert start(job, "fedsim.sbatch", STATUS=status).wait(30) == int(status)
    assert (job / "asked").read_text().splitlines() == ["requeue 41"]


@pytest.mark.parametrize("why", ["failed", "cancelled", "no marker", "finished", "too often"])
def test_a_job_that_cannot_or_should_not_go_on_is_not_queued_again(why: str, job: Path) -> None:
    """A marker of an earlier start says nothing; nor does one that a cancelled step left. A run that came to no round
    before its time limit would come to none the next time; one that finished has nothing to do."""
    preempted = "JobState=RUNNING Reason=None PreemptTime=2026-01-02T03:04:05"
    shown = preempted if why == "finished" else "JobState=COMPLETING Reason=None PreemptTime=None"
    (job / "shown").write_text(f"JobId=41 {shown} SuspendTime=None\n")
    (job / "runs" / "slurm-41").mkdir(parents=True)
    (job / "runs" / "slurm-41" / "PREEMPTED").touch()
    if why not in ("failed", "finished"):
        (job / "go_on").touch()
    if why == "no marker":
        (job / "scancel").write_text('#!/usr/bin/env bash\necho "$@" >> asked; rm go_on\n')
    status = "0" if why == "finished" else "2"
    batch = start(job, "fedsim.sbatch", STATUS=status, **({"SLURM_RESTART_COUNT": "100"} if why == "too often" else {}))
    while not (job / "ran").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    if why == "cancelled":
        batch.send_signal(signal.SIGTERM)  # which the steps get, too
        (job / "told").touch()
    if why in ("no marker", "too often"):
        batch.send_signal(signal.SIGUSR1)
    assert batch.wait(30) == int(status)
    asked = (job / "asked").read_text().splitlines() if (job / "asked").exists() else []
    assert asked == (["--signal=USR1 41"] if why in ("no marker", "too often") else [])
