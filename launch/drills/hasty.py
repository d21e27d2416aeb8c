"""A worker that waits less for the others than the project's half an hour, so that a drill need not.

torchrun ... -m launch.drills.hasty SECONDS run ...
"""

import sys
from datetime import timedelta

from launch import environment
from launch.drills import workers


def main(seconds: str, *command: str) -> None:
    """Does what `python -m launch COMMAND` does.

    Args:
        seconds: the timeout of a collective.
        command: for `launch`.
    """
    environment.COLLECTIVE_TIMEOUT = timedelta(seconds=float(seconds))
    workers.run(*command)


if __name__ == "__main__":
    main(*sys.argv[1:])
