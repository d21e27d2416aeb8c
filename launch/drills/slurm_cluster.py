"""A SLURM of two nodes on this machine, with keys, ports and a folder of its own; it is gone when the context ends."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

import launch
from launch.drills.background import background

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PACKAGES = "apt-get install -y --no-install-recommends slurm-wlm munge"
NODES = ("n1", "n2")
CPUS = 4
"""Of a node. SLURM is told so whatever the machine has: what is drilled is who runs where, not how fast."""

UP_SECONDS, DOWN_SECONDS = 60, 60

_SETTINGS = """\
ClusterName=drill
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=60
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
"""All that does not depend on folder, host and ports: no accounting, no cgroups, and a job may take another's place."""


def missing() -> list[str]:
    """What a SLURM of one's own needs and this machine or user has not."""
    return [*([] if os.geteuid() == 0 else ["root"]), *(name for name in PROGRAMS if _find(name) is None)]


def configuration(folder: Path, host: str, ports: Sequence[int]) -> str:
    """Writes slurm.conf.

    Args:
        folder: for all files.
        host: this machine's name, on which both nodes are.
        ports: the controller's, and one a node; all listen on the loopback device alone.
    """
    files = {
        "StateSaveLocation": "state",
        "SlurmdSpoolDir": "spool.%n",
        "SlurmctldPidFile": "slurmctld.pid",
        "SlurmdPidFile": "slurmd.%n.pid",
        "SlurmctldLogFile": "slurmctld.log",
        "SlurmdLogFile": "slurmd.%n.log",
    }
    controller, *others = ports
    # Workers meet on a port that follows from the job's number: that of no other SLURM here, and below those given out.
    first = f"FirstJobId={1 + controller % 12000}"
    head = [f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={controller}", first]
    paths = [f"AuthInfo=socket={folder / 'munge.socket'}", *(f"{key}={folder / name}" for key, name in files.items())]
    shape = f"CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory=1000"
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {shape} State=UNKNOWN"
        for name, port in zip(NODES, others, strict=True)
    ]
    return "\n".join([*head, *paths, *nodes, _SETTINGS])


@dataclass(frozen=True)
class Cluster:
    """SLURM's commands.

    Attributes:
        folder: where jobs are submitted and run.
        variables: the environment in which the commands find this SLURM and no other.
    """

    folder: Path
    variables: dict[str, str]

    def call(self, *command: str) -> str:
        """Runs a command and returns what it printed.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def tasks(self, job: str) -> list[dict[str, str]]:
        """What SLURM knows of a job; of an array, of each task."""
        shown = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(reversed([_pair(word) for word in line.split()])) for line in shown]

    def start_now(self, job: str) -> None:
        """Spares a job that was queued again its two minutes; one that is not yet, or runs, stays as it is."""
        with suppress(RuntimeError):
            self.call("scontrol", "update", f"jobid={job}", "StartTime=now")


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Brings up munge, a controller and two nodes, and ends them and all their jobs.

    Args:
        folder: to be made; its parents are readable by all, which munge asks for.

    Raises:
        RuntimeError: the nodes did not come up; with the end of the logs.
    """
    folder.mkdir(mode=0o755)
    for name in ("state", "work", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    conf, key, munge = folder / "slurm.conf", folder / "munge.key", folder / "munge.socket"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    host = socket.gethostname().partition(".")[0]
    conf.write_text(configuration(folder, host, _free_ports(1 + len(NODES))), encoding="utf-8")
    up = Cluster(folder / "work", _variables(conf))
    own = {"key-file": key, "socket": munge, "pid-file": folder / "munged.pid"}
    own |= {"log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}
    with ExitStack() as ends:
        ends.enter_context(_daemon(up, "munged", "--foreground", *(f"--{name}={path}" for name, path in own.items())))
        _until(munge.exists, folder)
        ends.enter_context(_daemon(up, "slurmctld", "-D", "-c", "-f", str(conf)))
        for node in NODES:
            ends.enter_context(_daemon(up, "slurmd", "-D", "-f", str(conf), "-N", node))
        _until(lambda: _idle(up) == str(len(NODES)), folder)
        try:
            yield up
        finally:
            _end_jobs(up, conf)


def _find(program: str) -> str | None:
    """Finds a daemon, too, where its folder is not on the PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _free_ports(count: int) -> list[int]:
    """Finds ports that are free now."""
    with ExitStack() as open_until_all_are_found:
        sockets = [open_until_all_are_found.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _variables(conf: Path) -> dict[str, str]:
    """The environment without another SLURM's variables; jobs find the package that drills them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    here = str(Path(launch.__file__).resolve().parents[1])
    return {**kept, "SLURM_CONF": str(conf), "PYTHONPATH": os.pathsep.join([here, kept.get("PYTHONPATH", "")])}


def _daemon(up: Cluster, program: str, *arguments: str) -> AbstractContextManager[object]:
    """Keeps one of SLURM's daemons in the foreground of its own."""
    return background([_find(program) or program, *arguments], up.folder.parent / f"{program}.said", up.variables)


def _idle(up: Cluster) -> str:
    """How many nodes are idle; nothing while the controller does not answer."""
    try:
        return up.call("sinfo", "--noheader", "--partition=low", "--states=idle", "--format=%D")
    except RuntimeError:
        return ""


def _until(holds: Callable[[], bool], folder: Path) -> None:
    """Waits for something that comes up."""
    end = time.monotonic() + UP_SECONDS
    while not holds():
        if time.monotonic() > end:
            logs = [
                f"{path.name}: {path.read_text()[-500:]}" for path in [*folder.glob("*.log"), *folder.glob("*.said")]
            ]
            raise RuntimeError(f"SLURM is not up after {UP_SECONDS} s. " + "\n".join(logs))
        time.sleep(0.1)


def _end_jobs(up: Cluster, conf: Path) -> None:
    """Cancels all jobs, and kills what is left of them."""
    with suppress(RuntimeError, subprocess.TimeoutExpired):
        up.call("scancel", "--user=root")
        end = time.monotonic() + DOWN_SECONDS
        while up.call("squeue", "--noheader") and time.monotonic() < end:
            time.sleep(0.2)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get("SLURM_CONF") == str(conf)
            if ours and process.name() not in ("munged", "slurmctld", "slurmd"):
                process.kill()
