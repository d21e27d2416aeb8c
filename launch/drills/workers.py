"""Workers as torchrun starts them, forked from one process that has imported everything: most of a start is imports."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import uuid4

import psutil

IMPORTED = (
    "launch.run",
    "sklearn.datasets",
    "torch.distributed.launcher.api",
    "torch.utils.tensorboard",
    "transformers.models.vit.modeling_vit",
)
"""What the process that forks imports, besides what these import. It does nothing else, so it may fork."""


def launch(workers: int, work: Callable[..., object], *arguments: object, said: Path) -> ForkServerProcess:
    """Starts a launcher with so many workers; all do the same work, and find each other as under torchrun.

    Args:
        workers: how many.
        work: a function of a module; what it exits with is a worker's exit status.
        arguments: for it.
        said: the file for all that launcher and workers print.

    Returns:
        The launcher. It exits with 1 where a worker failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    process = context.Process(target=_launch, args=(workers, work, arguments, said))
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun does; read when the process that forks imports torch
    try:
        process.start()
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    return process


def wait(launcher: BaseProcess, seconds: float) -> int | None:
    """Waits for a launcher, ends it where it takes longer, and returns its exit status."""
    launcher.join(seconds)
    kill(launcher)
    return launcher.exitcode


def kill(launcher: BaseProcess) -> None:
    """As `kill -9` of the launcher and its workers, which outlive a launcher that is killed alone."""
    if launcher.is_alive():
        for worker in psutil.Process(launcher.pid).children(recursive=True):
            worker.kill()
        launcher.kill()
        launcher.join()


def run(*arguments: str) -> None:
    """The work of a worker of `torchrun -m launch ARGUMENTS`."""
    from launch.__main__ import main

    sys.exit(main(arguments))


def _launch(workers: int, work: Callable[..., object], arguments: tuple[object, ...], said: Path) -> None:
    """What `torchrun --standalone --nproc_per_node=WORKERS` does."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with said.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    config = LaunchConfig(
        *(1, 1, workers),
        run_id=str(uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, _work)(work, *arguments)


def _work(work: Callable[..., object], *arguments: object) -> None:
    """A worker's life. The launcher's answer to SIGTERM is not for workers: the launcher ends them by it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work(*arguments)
