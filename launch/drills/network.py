"""Two hosts on one machine: network namespaces, and a veth pair as the link between them.

What runs on one host sees that host's interfaces alone, and reaches the other through the link only. Files, processors
and the clock are shared. Needs root on Linux, and the command `ip` (iproute2).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fedsim.errors import ConfigurationError


@dataclass(frozen=True)
class Host:
    """One of the two.

    Attributes:
        number: 0 or 1.
        namespace: its network namespace.
        interface: its end of the link.
        address: of that end.
    """

    number: int
    namespace: str
    interface: str
    address: str


def host(number: int) -> Host:
    """Names a host of this process; drills beside each other do not collide, as each link is between namespaces."""
    return Host(number, f"fedsim-{os.getpid()}-{number}", f"link{number}", f"10.77.0.{number + 1}")


def missing() -> str:
    """Says what two hosts need and this machine or user does not have; nothing where all is there."""
    if sys.platform != "linux":
        return "network namespaces are missing: they need Linux"
    if os.geteuid() != 0:
        return "root is missing: only root makes network namespaces"
    if shutil.which("ip") is None:
        return "the command ip is missing: install iproute2"
    return ""


def set_up(first: Host, second: Host) -> list[list[str]]:
    """Returns the commands that make two hosts and their link."""
    ends = (first, second)
    pair = ["type", "veth", "peer", "name", second.interface, "netns", second.namespace]
    return [
        *(["ip", "netns", "add", end.namespace] for end in ends),
        ["ip", "link", "add", first.interface, "netns", first.namespace, *pair],
        *(["ip", "-n", end.namespace, "address", "add", f"{end.address}/24", "dev", end.interface] for end in ends),
        *(["ip", "-n", end.namespace, "link", "set", name, "up"] for end in ends for name in ("lo", end.interface)),
    ]


class Hosts:
    """Two hosts, while the context lasts; nothing that was started on them outlives it.

    Attributes:
        hosts: both.
    """

    def __init__(self) -> None:
        self.hosts = (host(0), host(1))
        self._started: list[tuple[Host, subprocess.Popen[bytes]]] = []

    def start(self, on: Host, command: Sequence[str], environment: Mapping[str, str], said: Path) -> "Process":
        """Starts a command on a host.

        Args:
            on: which host.
            command: and its arguments.
            environment: all of it.
            said: the file that what it prints is added to.
        """
        with said.open("ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", on.namespace, *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the drill's, which ends all in its order
            )
        self._started.append((on, process))
        return process

    def kill(self, victim: Host) -> None:
        """As `kill -9` of everything on a host."""
        while pids := _ip("netns", "pids", victim.namespace).split():  # again, as what is listed may just fork
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)
        for on, process in self._started:
            if on == victim:
                process.wait()

    def cut(self) -> None:
        """Takes the link down at the second host; neither end is told, and no connection is closed."""
        _ip("-n", self.hosts[1].namespace, "link", "set", self.hosts[1].interface, "down")

    def mend(self) -> None:
        """Brings the link up again."""
        _ip("-n", self.hosts[1].namespace, "link", "set", self.hosts[1].interface, "up")

    def __enter__(self) -> Self:
        try:
            for command in set_up(*self.hosts):
                _ip(*command[1:])
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._take_down()

    def _take_down(self) -> None:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            there = {line.split()[0] for line in _ip("netns", "list").splitlines()}
            for end in self.hosts:
                if end.namespace in there:
                    self.kill(end)
                    _ip("netns", "delete", end.namespace)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


Process = subprocess.Popen[bytes]


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise ConfigurationError(f"ip {' '.join(arguments)} failed ({said}); this user may not make such hosts here")
    return done.stdout
