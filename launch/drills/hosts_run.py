"""A run over two hosts: a torchrun on each with one worker, which is started, watched and started again."""

import csv
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.drills.network import Host, Hosts, Process

SETTINGS = (
    "--rounds",
    "120",
    "--evaluate_every_rounds",
    "20",
    "--checkpoint_every_rounds",
    "2",
    "--accelerator",
    "cpu",
)
MIDDLE = 20
"""The round of which the second host must have trained clients before anything happens to it."""

PORT = 29500
SECONDS = 300
"""After which what is waited for counts as never coming."""

LOST = "fedsim: another worker stopped"
MEETINGS = {
    "static": (),
    "c10d": ("is_host={}",),
    "elastic": ("is_host={}", "keep_alive_interval=2", "keep_alive_max_attempt=2", "last_call_timeout=5"),
}
"""How launchers find each other, and what of it is set by --rdzv-conf. In an elastic run the one that goes on alone
gives up on the other after 2 times 2 seconds, and waits 5 seconds for any that may still come."""


class Unexpected(RuntimeError):
    """A run did something else than what the drill shows."""


def torchrun(on: Host, head: Host, meeting: str) -> list[str]:
    """Returns the launcher's part of a command, one worker a host.

    No name has to resolve: both addresses are given, and which launcher holds the store.

    Args:
        on: the host that the launcher runs on.
        head: the host where launchers meet.
        meeting: of `MEETINGS`.
    """
    started = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", f"--local-addr={on.address}"]
    if meeting == "static":
        place = [f"--node-rank={on.number}", f"--master-addr={head.address}", f"--master-port={PORT}"]
        return [*started, "--nnodes=2", *place]
    settings = ",".join(MEETINGS[meeting]).format(str(on == head).lower())
    endpoint = ["--rdzv-backend=c10d", "--rdzv-id=drill", f"--rdzv-endpoint={head.address}:{PORT}"]
    size = ["--nnodes=1:2", "--max-restarts=3"] if meeting == "elastic" else ["--nnodes=2"]
    return [*started, *size, *endpoint, f"--rdzv-conf={settings}"]


def surroundings(on: Host, meeting: str) -> dict[str, str]:
    """Returns what a host sets beside what is set here: gloo must not take the address of the host's name."""
    found = {"GLOO_SOCKET_IFNAME": on.interface, "OMP_NUM_THREADS": "1"}
    # With the launchers' store shared by workers, a host that comes back waits for keys that nobody writes.
    return found | ({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if meeting == "elastic" else {})


class Run:
    """A run over both hosts.

    Args:
        hosts: both.
        path: the run directory.
        meeting: of `MEETINGS`.
        options: of the run, beside those of every part.
    """

    def __init__(self, hosts: Hosts, path: Path, meeting: str, options: Sequence[str] = ()) -> None:
        self.path = path
        self._hosts = hosts
        self._meeting = meeting
        self._options = options
        self._launchers: dict[int, Process] = {}

    def start(self, numbers: Sequence[int] = (0, 1)) -> None:
        """Starts the launchers of hosts. A run that was begun goes on."""
        for number in numbers:
            on = self._hosts.hosts[number]
            launcher = torchrun(on, self._hosts.hosts[0], self._meeting)
            environment = {**os.environ, **surroundings(on, self._meeting)}
            command = [*launcher, "-m", "launch", *fedsim_run(self.path), *self._options]
            self._launchers[number] = self._hosts.start(on, command, environment, self._file(number))

    def said(self, number: int) -> str:
        """What launcher and worker of a host have printed so far."""
        return self._file(number).read_text(errors="replace")

    def ended(self, *numbers: int) -> bool:
        """Whether these hosts' launchers have."""
        return all(self._launchers[number].poll() is not None for number in numbers)

    def status(self, number: int) -> int:
        """The exit status of a launcher that has ended."""
        return self._launchers[number].wait()

    def worked(self, worker: int) -> int:
        """The last round of the ledger in which a worker trained; 0 before."""
        path = self.path / "ledger.csv"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return max((int(row["round"]) for row in csv.DictReader(whole) if row["worker"] == str(worker)), default=0)

    def until(self, seen: Callable[[], bool], what: str, seconds: float = SECONDS) -> float:
        """Waits until something is seen, and returns the seconds that this took.

        Raises:
            Unexpected: it took too long, or nobody is left who could bring it about.
        """
        started = time.monotonic()
        while not (found := seen()) and time.monotonic() - started < seconds and not self.ended(*self._launchers):
            time.sleep(0.1)
        if not found and not seen():
            raise Unexpected(f"not within {time.monotonic() - started:.0f} s: {what}; {self._last_words()}")
        return time.monotonic() - started

    def finish(self, *numbers: int) -> None:
        """Waits until the launchers of hosts end well.

        Raises:
            Unexpected: they do not.
        """
        self.until(lambda: self.ended(*numbers), "the run ends")
        if any(self.status(number) for number in numbers):
            raise Unexpected(f"the run failed; {self._last_words()}")

    def reach_middle(self) -> None:
        """Waits until both workers are in the middle of the run."""
        self.until(lambda: min(self.worked(0), self.worked(1)) >= MIDDLE, f"both hosts have trained in round {MIDDLE}")

    def fail(self, number: int, seconds: float) -> str:
        """Waits until a launcher ends with a status that is not 0, and its worker has said why; returns the line.

        Raises:
            Unexpected: it did not within so many seconds, or said nothing.
        """
        self.until(lambda: self.ended(number), f"host {number} ends", seconds)
        lines = [line for line in self.said(number).splitlines() if LOST in line]
        if not lines or not self.status(number):
            raise Unexpected(f"host {number} ended with {self.status(number)}; {self._last_words()}")
        return lines[-1][lines[-1].index(LOST) :]

    def _file(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.host{number}")

    def _last_words(self) -> str:
        return "; ".join(f"host {number} said ...{self.said(number)[-1500:]}" for number in self._launchers)


def fedsim_run(path: Path) -> list[str]:
    """Returns the command of a run for `launch`."""
    return ["run", *SETTINGS, "--run_dir", str(path), "--resume", "auto"]
