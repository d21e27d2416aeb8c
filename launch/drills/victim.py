"""One worker's life, until it kills itself in the middle of something."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from fedsim import checkpoint
from fedsim.classification import Classification
from fedsim.optimizers import SGD
from fedsim.transport import Workers
from launch.drills import trap, workers
from launch.environment import global_rank

STAGES: dict[str, tuple[Any, str]] = {
    "train": (SGD, "step"),
    "gather": (Workers, "_all_gather"),
    "save": (checkpoint, "_write"),
    "evaluate": (Classification, "outputs"),
}
"""What a worker does in each stage again and again: a function, and where it stands."""


def live(stage: str, rank: int, count: int, last_word: Path, *command: str) -> None:
    """Does what `python -m launch COMMAND` does.

    Args:
        stage: of `STAGES`.
        rank: the worker that dies there, by SIGKILL.
        count: when it gets there for this time.
        last_word: the file that it makes before.
        command: for `launch`.
    """
    if rank == global_rank():
        trap.before(*STAGES[stage], count, partial(_die, last_word))
    workers.run(*command)


def _die(last_word: Path) -> None:
    last_word.touch()
    os.kill(os.getpid(), signal.SIGKILL)
