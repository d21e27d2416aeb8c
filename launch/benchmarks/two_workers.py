"""Two processes that do rounds together when told to. In between they sleep on a pipe, so others can be timed."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fedsim.errors import WorkerLost
from fedsim.transport import Workers
from launch.benchmarks.works import Round

COUNT = 2
SECONDS_TO_LEAVE = 5
"""How long a worker may take to end by itself: one that is told in the middle of a round does the rest of it."""


@contextmanager
def two_workers(build: Callable[[Workers], Round], threads: int) -> Iterator[Round]:
    """Starts both processes, and ends them on leaving.

    Args:
        build: makes one worker's part of a round, on that worker; it must be picklable.
        threads: CPU threads of each.

    Yields:
        The whole round: it starts when both are told its number and ends when both are done.

    Raises:
        RuntimeError: by the round, where a worker stopped.
    """
    # Not forked: a process with threads of its own, as torch has, cannot be.
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[SpawnProcess] = []
    with TemporaryDirectory() as folder:
        try:
            for rank in range(COUNT):
                ours, theirs = context.Pipe()
                pipes.append(ours)
                with theirs:  # closed here, so that the pipe breaks when the process ends
                    given = (rank, Path(folder, "meeting"), build, threads, theirs)
                    process = context.Process(target=_work, args=given, daemon=True)
                    process.start()
                processes.append(process)
            yield partial(_round, pipes, processes)
        finally:
            for pipe in pipes:
                pipe.close()
            for process in processes:
                process.join(SECONDS_TO_LEAVE)
                process.kill()
                process.join()


def _round(pipes: Sequence[Connection], processes: Sequence[SpawnProcess], round: int) -> Tensor:
    try:
        for pipe in pipes:
            pipe.send(round)
        update, _ = [_receive(pipe, processes) for pipe in pipes]
    except (EOFError, ConnectionError) as error:
        raise RuntimeError("one of the two workers stopped; what it said stands above") from error
    return torch.from_numpy(update)


def _receive(pipe: Connection, processes: Sequence[SpawnProcess]) -> Any:
    """Waits for an answer, or for the end of any worker: the others would wait for it much longer."""
    if pipe not in wait([pipe, *(process.sentinel for process in processes)]):
        raise EOFError
    return pipe.recv()


def _work(rank: int, meeting: Path, build: Callable[[Workers], Round], threads: int, pipe: Connection) -> None:
    """The life of one worker, until its pipe closes: rank 0 is the server worker, which alone has an update to send."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everybody; who started this closes the pipe
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=dist.FileStore(str(meeting), COUNT), rank=rank, world_size=COUNT)
    try:
        train = build(Workers(rank, COUNT, torch.device("cpu")))
        with suppress(EOFError, ConnectionError, WorkerLost):  # whoever stopped first has said why
            while True:
                update = train(pipe.recv())
                pipe.send(update.numpy() if rank == 0 else None)
    finally:
        dist.destroy_process_group()
