"""One worker's life, until it kills itself in the middle of something: torchrun ... -m launch.drills.victim.

victim STAGE RANK COUNT FILE run ...    the worker RANK makes FILE and dies by SIGKILL when it gets to STAGE for the
                                        COUNT-th time
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim import checkpoint
from fedsim.classification import Classification
from fedsim.optimizers import SGD
from fedsim.transport import Workers
from launch.environment import global_rank

STAGES: dict[str, tuple[Any, str]] = {
    "train": (SGD, "step"),
    "gather": (Workers, "_all_gather"),
    "save": (checkpoint, "_write"),
    "evaluate": (Classification, "outputs"),
}
"""What a worker does in each stage again and again: a function, and where it stands."""


def main() -> int:
    """Sets the trap and runs."""
    stage, rank, count, last_word, *command = sys.argv[1:]
    if int(rank) == global_rank():
        _trap(*STAGES[stage], int(count), Path(last_word))
    from launch.__main__ import main as launch

    return launch(command)


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


if __name__ == "__main__":
    sys.exit(main())
