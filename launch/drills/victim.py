"""One worker's life, until it kills itself in the middle of something."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim import checkpoint
from fedsim.classification import Classification
from fedsim.optimizers import SGD
from fedsim.transport import Workers
from launch.drills import workers
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
        _trap(*STAGES[stage], count, last_word)
    workers.run(*command)


def _trap(owner: Any, name: str, count: int, last_word: Path) -> None:
    original: Callable[..., Any] = getattr(owner, name)
    left = [count]

    def trapped(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            last_word.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(owner, name, trapped)
