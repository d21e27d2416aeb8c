"""Runs over two hosts that lose each other, held against an undisturbed run on one worker.

    python -m launch.drills.hosts

The hosts are network namespaces of this machine with a link between them (`launch/drills/network.py`): needs root on
Linux, and `ip`. Every run is a torchrun on each host with one worker; every kill and every cut link is real.
"""

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
from launch.drills.hosts_run import LOST, SECONDS, Run, Unexpected, fedsim_run
from launch.drills.network import Hosts, missing
from launch.drills.outcome import bits
from launch.stopping import INTERRUPTED

SLACK_SECONDS = 15
"""What a busy machine may add to a timeout."""


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
