"""What runs in a peer's process: builds the same work as the benchmark, and does the rounds that it is told.

Started as `python -m launch.benchmarks.peers.serve MODULE DESCRIPTOR`, by the peer's own Python.
"""

import importlib
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from launch.benchmarks.local_work import Arena


class Told(Iterator[int]):
    """The numbers of the rounds to do, until the benchmark closes the pipe.

    Args:
        pipe: to the benchmark.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __next__(self) -> int:
        try:
            round: int = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise StopIteration from None
        return round

    def answer(self, update: Tensor) -> None:
        """Ends a round.

        Args:
            update: the mean of the cohort's, what they started from less what they ended with, (P,).
        """
        self._pipe.send(update.numpy())


def main(module: str, descriptor: int) -> None:
    """Serves one peer until the benchmark is done with it."""
    pipe = Connection(descriptor)
    work, threads = pipe.recv()
    torch.set_num_threads(threads)
    with Arena(work) as arena:
        importlib.import_module(module).serve(arena, Told(pipe))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
