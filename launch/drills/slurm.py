"""Runs on a real SLURM of two nodes, which this machine is made into for as long as it takes; root is needed.

    python -m launch.drills.slurm

Every run goes the user's way (`fedsim submit`) and is held against an undisturbed one on one worker: on two nodes by
srun and by torchrun, as an array, and told of its time limit and then preempted by a job of a higher partition.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedsim.checkpoint import newest_checkpoint
from fedsim.errors import ConfigurationError
from launch.arguments import Arguments
from launch.drills.outcome import bits, table
from launch.drills.slurm_cluster import PACKAGES, Cluster, cluster, missing
from launch.stopping import PREEMPTED

ROUNDS = 40
KEYS = ("--config", "digits", "--rounds", str(ROUNDS), "--evaluate_every_rounds", "5")
SECONDS = 300
"""After which a run counts as one that hangs."""

REVOKED_SECONDS = 5
"""A job that starts in the second in which its former start was ended has a credential that was revoked, and fails:
SLURM has it wait for two minutes, the drill for this long."""


class Differs(RuntimeError):
    """Something was not seen, or not as it must be."""


@dataclass
class Drill:
    """What the cases share.

    Attributes:
        slurm: brought up.
        whole: folders of undisturbed runs, by seed.
    """

    slurm: Cluster
    whole: dict[int, Path] = field(default_factory=dict)

    def submit(self, *options: str, keys: Sequence[str] = ()) -> str:
        """Submits a run as users do, and returns the job's number."""
        said = self.slurm.call(sys.executable, "-m", "launch", "submit", *options, "--", *KEYS, *keys)
        return said.removeprefix("job ").partition(":")[0]

    def run(self, name: str) -> Path:
        """The directory of a job's run."""
        return self.slurm.folder / "runs" / f"slurm-{name}"

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Waits until something is so.

        Raises:
            Differs: it is not, in time.
        """
        end = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > end:
                raise Differs(f"not seen in {SECONDS} s: {what}")
            time.sleep(0.2)

    def under_way(self, job: str, behind: int = 0) -> None:
        """Waits until a job's run has evaluated a round behind that one."""
        metrics = self.run(job) / "metrics.csv"
        self.until(
            f"an evaluation behind round {behind}",
            lambda: metrics.exists() and any(int(row["round"]) > behind for row in table(metrics)),
        )

    def requeued(self, job: str, times: int = 1) -> tuple[int, str]:
        """Waits until a job, or a task (1_0), is queued again, and lets it start.

        Args:
            job: which.
            times: it was queued again, this one included.

        Returns:
            The round that it saved, and what was seen.

        Raises:
            Differs: it was not queued again, not stopped on its way, or did not save.
        """

        def waits_again() -> bool:
            (task,) = self.slurm.tasks(job)
            if task["JobState"] in ("FAILED", "CANCELLED", "TIMEOUT", "COMPLETED"):
                raise Differs(f"job {job} is {task['JobState']} and was not queued again")
            return (task["JobState"], task["Restarts"]) == ("PENDING", str(times))

        self.until("the job is queued again", waits_again)
        run = self.run(job.replace("_", "-"))
        saved, _ = newest_checkpoint(run / "checkpoint")
        marker = run / PREEMPTED
        if saved is None or not 0 < saved.round < ROUNDS or not marker.exists():
            raise Differs("the run was not stopped on its way, or did not save")
        heard = marker.read_text().strip()
        time.sleep(REVOKED_SECONDS)

        def starts() -> bool:
            self.slurm.start_now(job)
            return not waits_again()

        self.until("the job starts again", starts)
        return saved.round, f"{heard}, saved round {saved.round}, queued again and gone on"

    def completed(self, job: str, tasks: int = 1) -> None:
        """Waits for a job's end, which must be a good one."""

        def over() -> bool:
            states = [task["JobState"] for task in self.slurm.tasks(job)]
            if not {*states} <= {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "COMPLETED"}:
                raise Differs(f"job {job} is {', '.join(states)}")
            return states == ["COMPLETED"] * tasks

        self.until(f"job {job} is completed", over)

    def same(self, name: str, seed: int = 0) -> None:
        """Holds a job's run against the undisturbed one of its seed.

        Raises:
            Differs: a bit differs.
        """
        if seed not in self.whole:
            folder = self.slurm.folder / "whole" / str(seed)
            run = (sys.executable, "-m", "launch", "run", *KEYS, "--seed", str(seed), "--run_dir", str(folder))
            self.slurm.call(*run)
            self.whole[seed] = folder
        if bits(self.run(name)) != bits(self.whole[seed]):
            raise Differs(f"the run of job {name} has other bits than the undisturbed one")


def by_srun(drill: Drill) -> str:
    """A worker on each of two nodes, by fedsim.sbatch."""
    job = drill.submit("--nodes", "2")
    drill.completed(job)
    drill.same(job)
    return "fedsim.sbatch, 2 nodes with a worker each"


def by_torchrun(drill: Drill) -> str:
    """A torchrun on each of two nodes, by fedsim_torchrun.sbatch."""
    job = drill.submit("--torchrun", "--nodes", "2")
    drill.completed(job)
    drill.same(job)
    return "fedsim_torchrun.sbatch, 2 nodes with a worker each"


def array(drill: Drill) -> str:
    """Two runs of two workers at once on one node, of which one is told of its time limit, and the other not."""
    options = ("--array", "0-1", "--tasks_per_node", "2", "--sbatch=--nodelist=n1")
    job = drill.submit(*options, keys=("--seed", "%a"))

    def side_by_side() -> bool:
        return [(task["JobState"], task["NodeList"]) for task in drill.slurm.tasks(job)] == [("RUNNING", "n1")] * 2

    drill.until("both tasks run at once", side_by_side)
    drill.under_way(f"{job}-0")
    drill.under_way(f"{job}-1")
    if not side_by_side():
        raise Differs("the tasks did not run at once")
    tasks = drill.slurm.tasks(job)
    (told,) = (task["ArrayTaskId"] for task in tasks if task["JobId"] == job)  # its number is the whole array's
    drill.slurm.call("scancel", "--signal=USR1", "--batch", f"{job}_{told}")
    _, said = drill.requeued(f"{job}_{told}")
    drill.completed(job, tasks=2)
    if {task["ArrayTaskId"]: task["Restarts"] for task in drill.slurm.tasks(job)}[str(1 - int(told))] != "0":
        raise Differs("the other task was disturbed")
    for seed in (0, 1):
        drill.same(f"{job}-{seed}", seed)
    return f"2 tasks with 2 workers each at once on n1, in run directories of their own; USR1 to task {told}: {said}"


def stopped_twice(drill: Drill) -> str:
    """Told of its time limit, and, gone on, in the way of a job of the higher partition that needs both nodes.

    The signal that --signal=B:USR1 sends is sent by hand: SLURM's own comes up to a minute early.
    """
    job = drill.submit("--nodes", "2", "--partition", "low")
    drill.under_way(job)
    drill.slurm.call("scancel", "--signal=USR1", "--batch", job)
    saved, told = drill.requeued(job)
    drill.under_way(job, behind=saved)
    options = ("--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    higher = drill.slurm.call("sbatch", *options, "--wrap=sleep 1")
    _, preempted = drill.requeued(job, times=2)
    drill.completed(higher)
    drill.completed(job)
    drill.same(job)
    return f"USR1 to the batch script by scancel: {told}; for a job in the higher partition: {preempted}"


CASES: dict[str, Callable[[Drill], str]] = {
    case.__name__: case for case in (by_srun, by_torchrun, array, stopped_twice)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Brings SLURM up, runs the cases, prints a line each; 1 where anything differs, 2 where something is missing."""
    parser = Arguments("drill", "Runs on a real SLURM of two nodes, which this machine is made into; needs root.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which (default all)")
    try:
        cases = parser.parse_args(sys.argv[1:] if argv is None else argv).cases
    except ConfigurationError as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2
    if lacking := missing():
        print(f"drill: missing here: {', '.join(lacking)}; as root: {PACKAGES}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # which munge asks for
        with cluster(Path(name) / "slurm") as slurm:
            drill = Drill(slurm)
            well = [_report(case, drill) for case in cases]
    print(f"{sum(well)} of {len(well)} cases ended with the bits of the undisturbed run")
    return int(not all(well))


def _report(name: str, drill: Drill) -> bool:
    """Runs a case and prints what was seen; where that is not what it must be, what its jobs said last, too."""
    started = time.monotonic()
    try:
        said, well = f"{CASES[name](drill)}; same bits", True
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        said, well = f"DIFFERS: {error}", False
    print(f"{name:<13} {said} ({time.monotonic() - started:.0f} s)", flush=True)
    outputs = sorted(drill.slurm.folder.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
    log = drill.slurm.folder.parent / "slurmctld.log"
    if not well:
        drill.slurm.call("scancel", "--user=root")  # what it left is not in the next one's way
        for path in (*outputs[-2:], log):
            print(f"{path.name}: {path.read_text()[-1500:]}", file=sys.stderr)
    return well


if __name__ == "__main__":
    sys.exit(main())
