"""Runs over two hosts that lose each other, held against an undisturbed run on one worker.

    python -m launch.drills.hosts

The hosts are network namespaces of this machine with a link between them (`launch/drills/network.py`): needs root on
Linux, and `ip`. Every run is a torchrun on each host with one worker; every kill and every cut link is real.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedsim.errors import ConfigurationError
from fedsim.options import require
from launch.__main__ import BAD_CONFIGURATION, SERVER_SPEAKS_SECONDS
from launch.arguments import Arguments
from launch.drills.network import Host, Hosts, Process, missing
from launch.drills.outcome import bits
from launch.stopping import INTERRUPTED

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

SLACK_SECONDS = 15
"""What a busy machine may add to a timeout."""

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


def main(argv: Sequence[str] | None = None) -> int:
    """Shows every part, and prints a line each.

    Returns:
        0; 1 where anything differs; 2 where something is missing; 130 after Ctrl-C or SIGTERM.
    """
    parser = Arguments("drill", "Runs over two hosts; hosts die, links are cut. Every run must end with the same bits.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which (default all)")
    parser.add_argument(
        "--timeout", type=float, default=20, help="of collectives, in seconds, for cut-link (default 20)"
    )
    try:
        arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
        require("--timeout", arguments.timeout, arguments.timeout >= 1, "1 or more")
        if lacking := missing():
            raise ConfigurationError(lacking)
        with tempfile.TemporaryDirectory() as folder, _Terminable(), Hosts() as hosts:
            return _drill(hosts, Path(folder), arguments.parts, arguments.timeout)
    except ConfigurationError as error:
        print(f"drill: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except KeyboardInterrupt:
        print("drill: interrupted; hosts and processes are gone", file=sys.stderr)
        return INTERRUPTED


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


def static(hosts: Hosts, path: Path, timeout: float) -> str:
    """A run over two hosts that know each other's place."""
    return _undisturbed(Run(hosts, path, "static"))


def c10d(hosts: Hosts, path: Path, timeout: float) -> str:
    """A run over two hosts that find each other."""
    return _undisturbed(Run(hosts, path, "c10d"))


def killed(hosts: Hosts, path: Path, timeout: float) -> str:
    """The second host dies; the run ends, and is started again on both."""
    run = Run(hosts, path, "c10d")
    run.start()
    run.reach_middle()
    hosts.kill(hosts.hosts[1])
    started = time.monotonic()
    line = run.fail(0, SERVER_SPEAKS_SECONDS + SLACK_SECONDS)
    seen = f"the first ended with {run.status(0)} after {time.monotonic() - started:.0f} s ({line})"
    return f"{seen}; {_again(run)}"


def killed_elastic(hosts: Hosts, path: Path, timeout: float) -> str:
    """The second host dies; the first goes on alone to the end."""
    run = Run(hosts, path, "elastic")
    run.start()
    seen = _left_alone(hosts, run)
    run.finish(0)
    _require_workers(run, 1)
    return f"{seen}, to the end"


def rejoin(hosts: Hosts, path: Path, timeout: float) -> str:
    """The second host dies, the first goes on alone, and the second comes back."""
    run = Run(hosts, path, "elastic")
    run.start()
    seen = _left_alone(hosts, run)
    before = run.worked(1)
    run.start([1])
    seconds = run.until(lambda: run.worked(1) > before, "the second host trains again")
    run.finish(0, 1)
    _require_workers(run, 2)
    return f"{seen}; the second trained again {seconds:.0f} s after its start"


def cut_link(hosts: Hosts, path: Path, timeout: float) -> str:
    """The link is cut; both ends end after the timeout of collectives, and a restart goes on when it is back."""
    run = Run(hosts, path, "static", ("--collective_timeout_seconds", f"{timeout:g}"))
    seen, started = _cut(hosts, run, timeout), time.monotonic()
    run.fail(1, SLACK_SECONDS)
    seen = f"{seen}, and the second {time.monotonic() - started:.0f} s later"
    hosts.mend()
    return f"{seen}; {_again(run)}"


def cut_link_c10d(hosts: Hosts, path: Path, timeout: float) -> str:
    """The same by c10d, where the second launcher asks the first one's store, and so waits until the link is back."""
    run = Run(hosts, path, "c10d", ("--collective_timeout_seconds", f"{timeout:g}"))
    seen = _cut(hosts, run, timeout)
    hosts.mend()
    started = time.monotonic()
    run.fail(1, SECONDS)
    return f"{seen}, the second {time.monotonic() - started:.0f} s after the link was back; {_again(run)}"


PARTS: Mapping[str, Callable[[Hosts, Path, float], str]] = {
    "static": static,
    "c10d": c10d,
    "killed": killed,
    "killed-elastic": killed_elastic,
    "rejoin": rejoin,
    "cut-link": cut_link,
    "cut-link-c10d": cut_link_c10d,
}
"""Every part by name; each says what was seen, and raises `Unexpected` where that is something else."""


def _drill(hosts: Hosts, folder: Path, parts: Sequence[str], timeout: float) -> int:
    whole = folder / "whole"
    command = [sys.executable, "-m", "launch", *fedsim_run(whole)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if hosts.start(hosts.hosts[0], command, environment, folder / "whole.said").wait():
        raise ConfigurationError(f"the undisturbed run failed: {(folder / 'whole.said').read_text()[-1500:]}")
    same = 0
    for part in parts:
        started = time.monotonic()
        path = folder / part
        try:
            seen = PARTS[part](hosts, path, timeout)
            equal = bits(path) == bits(whole)
        except (Unexpected, OSError, subprocess.TimeoutExpired) as error:
            seen, equal = str(error), False
        same += equal
        said = "same bits" if equal else "DIFFERS"
        print(f"{part:<14} {said} ({time.monotonic() - started:.0f} s): {seen}", flush=True)
        hosts.mend()
        for host in hosts.hosts:
            hosts.kill(host)
    print(f"{same} of {len(parts)} parts ended with the bits of the undisturbed run")
    return int(same < len(parts))


def _undisturbed(run: Run) -> str:
    run.start()
    run.finish(0, 1)
    _require_workers(run, 2)
    return "one worker a host"


def _again(run: Run) -> str:
    """Starts a run again on both hosts, and waits until it ends well."""
    before = run.worked(0)
    run.start()
    run.finish(0, 1)
    _require_workers(run, 2)
    return f"started again behind round {before}"


def _cut(hosts: Hosts, run: Run, timeout: float) -> str:
    """Cuts the link in the middle of a run, and waits until both workers have said so and the first launcher ended."""
    run.start()
    run.reach_middle()
    hosts.cut()
    started = time.monotonic()
    allowed = timeout + SERVER_SPEAKS_SECONDS + SLACK_SECONDS
    run.until(lambda: all(LOST in run.said(number) for number in (0, 1)), "both workers miss each other", allowed)
    said = time.monotonic() - started
    line = run.fail(0, SECONDS)
    return (
        f"timeout {timeout:g} s; both said so after {said:.0f} s ({line}); the first ended with {run.status(0)} "
        f"after {time.monotonic() - started:.0f} s"
    )


def _left_alone(hosts: Hosts, run: Run) -> str:
    """Kills the second host in the middle of a run, and waits until the first has gone on."""
    run.reach_middle()
    hosts.kill(hosts.hosts[1])
    started = time.monotonic()
    noticed = run.until(lambda: LOST in run.said(0), "the first host says that it lost the other")
    before = run.worked(0)  # a round that the kill cut short may stand there in part
    run.until(lambda: run.worked(0) > before, "the first host goes on alone")
    return (
        f"the first said so after {noticed:.0f} s and had trained on alone behind round {before} "
        f"after {time.monotonic() - started:.0f} s"
    )


def _require_workers(run: Run, expected: int) -> None:
    """Holds how many workers the run ended on against what it should have."""
    found = json.loads((run.path / "summary.json").read_text())["workers"]
    if found != expected:
        raise Unexpected(f"the run ended on {found} workers, not on {expected}")


class _Terminable:
    """SIGTERM and SIGINT end the drill as Ctrl-C does, while the context lasts; also where a shell ignores SIGINT."""

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
