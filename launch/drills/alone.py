"""A run in a process of its own, which something happens to; it says what `fedsim` would say, and ends as that does."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from launch.drills import trap
from launch.drills.workers import IMPORTED

SECONDS = 300
"""After which a run counts as one that hangs."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; None where it hung and was killed.
        errors: the lines on standard error.
    """

    status: int | None
    errors: list[str]


@dataclass
class Started:
    """A command that goes on.

    Attributes:
        process: where.
        said: the file of its standard error.
    """

    process: ForkServerProcess
    said: Path

    def end(self) -> Ended:
        """Waits for it."""
        self.process.join(SECONDS)
        if hung := self.process.is_alive():
            self.process.kill()
            self.process.join()
        return Ended(None if hung else self.process.exitcode, self.said.read_text(encoding="utf-8").splitlines())


def start(said: Path, spoil: Callable[[], object], *command: str) -> Started:
    """Starts `fedsim COMMAND`.

    Args:
        said: the file for its standard error.
        spoil: done before, in the same process; a function of a module, or a partial one.
        command: what stands behind `fedsim`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    process = context.Process(target=_live, args=(said, spoil, command))
    process.start()
    return Started(process, said)


def nothing() -> None:
    """Spoils nothing."""


def fill(stage: str, count: int, ballast: Path) -> None:
    """Lets something else fill the disk in the middle of the run.

    Args:
        stage: of a run, as `_stages` names them.
        count: when it gets there for this time.
        ballast: the file that fills the disk.
    """
    trap.before(*_stages()[stage], count, partial(_fill, ballast))


def hold(path: Path) -> None:
    """Lets the run make a file in its first local step, and wait until that is taken away."""
    trap.before(*_stages()["training"], 1, partial(_hold, path))


def jump(after: dict[int, float]) -> None:
    """Moves the clock.

    Args:
        after: by how many seconds from then on, by rounds; 0 is before the first.
    """
    from fedsim.reporting import RunFiles

    offset = [after.get(0, 0.0)]
    seconds, nanoseconds = time.time, time.time_ns
    done: Callable[..., None] = RunFiles.round_done

    def round_done(files: RunFiles, round: int, *given: Any) -> None:
        done(files, round, *given)
        offset[0] = after.get(round, offset[0])

    setattr(time, "time", lambda: seconds() + offset[0])  # noqa: B010 - it belongs to a module that mypy knows
    setattr(time, "time_ns", lambda: nanoseconds() + int(offset[0] * 1e9))  # noqa: B010
    setattr(RunFiles, "round_done", round_done)  # noqa: B010


def _stages() -> dict[str, tuple[Any, str]]:
    """What a run does in each stage: a function, and where it stands."""
    from fedsim import checkpoint, reporting
    from fedsim.optimizers import SGD
    from launch import experiment

    return {
        "training": (SGD, "step"),
        "a checkpoint": (checkpoint, "_write"),
        "metrics.csv": (reporting, "write_atomically"),
        "the curves": (reporting.RunFiles, "history"),
        "the adapter": (experiment, "_export"),
    }


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def _hold(path: Path) -> None:
    path.touch()
    while path.exists():
        time.sleep(0.05)


def _live(said: Path, spoil: Callable[[], object], command: tuple[str, ...]) -> None:
    from launch.__main__ import main

    with said.open("wb") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    spoil()
    sys.exit(main(command))
