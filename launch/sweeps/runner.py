"""Runs what a sweep planned: one after another here, or several at a time in processes of their own."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING

from rich.console import Console

from data_partitions.errors import DataError
from fedsim.errors import ConfigurationError, RunStopped, TrainingError
from launch.environment import use_gpu, visible_gpus
from launch.experiment import run as run_experiment
from launch.stopping import StopRequest
from launch.sweeps.plan import PlannedRun

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: which.
        failure: why it has no result, in one line; nothing where it has one.
        stopped_by: the signal that stopped it, with which the sweep ends; nothing where none came.
    """

    run: PlannedRun
    failure: str = ""
    stopped_by: str = ""


def run_all(runs: Sequence[PlannedRun], jobs: int, console: Console, debug: bool = False) -> list[Outcome]:
    """Runs all of them; a finished one stays as it is, one that stopped goes on, one that fails stops no other.

    Args:
        runs: what there is to run.
        jobs: how many at a time, dealt out over the GPUs; one by one they run in this process.
        console: where this process shows progress.
        debug: show the traceback of every failure.

    Returns:
        How each ended, in their order.

    Raises:
        RunStopped: a signal stopped a run; those under way ended first, and the others did not start.
        TrainingError: a process was killed.
    """
    if min(jobs, len(runs)) <= 1:
        outcomes = []
        for run in runs:
            outcomes.append(_run_once(run, console, debug))
            _end_if_stopped(outcomes[-1])
        return outcomes
    fresh = multiprocessing.get_context("spawn")  # a process that has threads may not be forked
    gpus = fresh.SimpleQueue()
    for name in islice(cycle(visible_gpus() or [""]), jobs):
        gpus.put(name)
    with ProcessPoolExecutor(jobs, fresh, _begin, (gpus,)) as pool:
        try:
            return run_with(pool, partial(_run_in_process, debug=debug), runs, jobs)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process of the sweep was killed, for want of memory perhaps: give fewer --jobs; the same command "
                "goes on"
            ) from error


def run_with(
    pool: Executor, call: Callable[[PlannedRun], Outcome], runs: Sequence[PlannedRun], jobs: int
) -> list[Outcome]:
    """Has a pool run all of them. It has no more than `jobs` at once: what it has queued, it cannot be asked to drop.

    Args:
        pool: where they run.
        call: runs one.
        runs: what there is to run.
        jobs: how many at a time.

    Returns:
        How each ended, in their order.

    Raises:
        RunStopped: a signal stopped a run; no other was begun since.
    """
    left = iter(enumerate(runs))
    under_way: dict[Future[Outcome], int] = {}
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(runs):
        for at, run in islice(left, jobs - len(under_way)):
            under_way[pool.submit(call, run)] = at
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            outcomes[under_way.pop(future)] = outcome = future.result()
            _end_if_stopped(outcome)
    return [outcomes[at] for at in range(len(runs))]


def _end_if_stopped(outcome: Outcome) -> None:
    if outcome.stopped_by:
        raise RunStopped(f"stopped by {outcome.stopped_by}; the same command goes on", outcome.stopped_by)


def _run_in_process(run: PlannedRun, debug: bool) -> Outcome:
    """Runs one of them in a process of the pool: Ctrl-C stops it also where it does not listen yet."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run_once(run, Console(force_terminal=False), debug)
    except KeyboardInterrupt:
        return Outcome(run, "interrupted", signal.SIGINT.name)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_once(run: PlannedRun, console: Console, debug: bool) -> Outcome:
    """Runs one of them, whatever becomes of it."""
    try:
        if run.finished:
            console.print(f"{run.folder} is finished and stays", highlight=False, soft_wrap=True)
            return Outcome(run)
        settings = run.read()
        stop = StopRequest(settings.stop_within_seconds, speaks=True)
        run_experiment(settings, console, stop)
        return Outcome(run, stopped_by=stop.by)  # it may have heard in its last round
    except RunStopped as stopped:
        return Outcome(run, str(stopped), stopped.by)
    except Exception as error:  # memory that is not enough for one run may be for the next
        known = isinstance(error, ConfigurationError | DataError | TrainingError)
        if debug or not known:
            traceback.print_exc()
        said = str(error) if known else f"{type(error).__name__}: {error}"
        return Outcome(run, " ".join(said.split()))


def _begin(gpus: "SimpleQueue[str]") -> None:
    """Makes a process ready for runs: it has a GPU of its own where there are as many, and stops with its parent."""
    if name := gpus.get():
        use_gpu(name)
    _follow_parent()


def _follow_parent() -> None:
    """Has this process stop as its sweep does: a run saves first. Ctrl-C is heard by a run, not while none is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def stop_with_parent() -> None:
        assert parent is not None
        parent.join()
        while True:  # again, as between two runs it is heard otherwise
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=stop_with_parent, daemon=True).start()
