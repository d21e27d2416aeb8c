"""Rounds of all contestants in turn: client steps a second, ratios of neighbours, and each one's peak memory."""

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.benchmarks.contestants import CONTESTANTS, PFL_OF_THREADS
from launch.benchmarks.local_work import Arena
from launch.benchmarks.peers.environments import not_installed
from launch.benchmarks.works import Work

SETTLES_SECONDS = 1
"""What another simulator's processes still do behind a round must not be timed with whoever comes next."""

MEASURED = ("client_steps_per_second", "ratio_to_bare", "ratio_to_sequential", "ratio_to_pfl", "peak_memory_bytes")


def measure(works: Mapping[int, Work], repeats: int, threads: int, who: Sequence[str]) -> list[dict[str, Any]]:
    """Measures contestants in rounds that alternate.

    Args:
        works: by their numbers.
        repeats: timed rounds of each contestant.
        threads: CPU threads of each worker.
        who: of `CONTESTANTS`, the bare loop among them.

    Returns:
        A row for each work and contestant; of a peer that is not installed, one that says so in its note.
    """

    peers = {name: CONTESTANTS[name].peer for name in who}
    absent = {name: reason for name, peer in peers.items() if peer and (reason := not_installed(peer))}
    present = [name for name in who if name not in absent]
    # First, as a process's peak counts from that of the one that started it, which is small only now.
    peaks = {
        (number, name): peak_memory(number, name, threads, work.clients)
        for number, work in works.items()
        for name in present
    }
    rows = []
    for number, work in works.items():
        seconds = _seconds(work, present, repeats)
        for name in who:
            times = CONTESTANTS[name].threads
            row: dict[str, Any] = {"work": work.name, "who": name, "threads": threads * times}
            row |= dict.fromkeys(MEASURED)
            if spent := seconds.get(name):
                row["client_steps_per_second"] = round(work.clients * work.steps / statistics.median(spent), 1)
                for ratio, other in (
                    ("ratio_to_bare", "bare"),
                    ("ratio_to_sequential", "fedsim_sequential"),
                    ("ratio_to_pfl", PFL_OF_THREADS[times]),
                ):
                    row[ratio] = median_ratio(seconds[other], spent) if other in seconds else None
                row["peak_memory_bytes"] = peaks[number, name]
            else:
                row["note"] = absent[name]
            rows.append(row)
    return rows


def _seconds(work: Work, present: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Times the contestants in turn, so that a slow moment of the machine hits all."""
    with Arena(work) as arena:
        trained = {who: CONTESTANTS[who].make(arena) for who in present}
        expected = trained["bare"](1)
        for who, train in trained.items():  # the warm-up proves equal work
            difference = float((train(1) - expected).norm() / expected.norm())
            if difference > CONTESTANTS[who].most_apart:
                raise RuntimeError(f"{work.name}: {who} differs from the bare loop by {difference:.1e}")
        seconds: dict[str, list[float]] = {who: [] for who in trained}
        for repeat in range(repeats):
            for who, train in trained.items():
                started = time.perf_counter()
                train(repeat + 1)
                seconds[who].append(time.perf_counter() - started)
                if CONTESTANTS[who].peer:
                    time.sleep(SETTLES_SECONDS)
    return seconds


def median_ratio(others: Sequence[float], own: Sequence[float]) -> float:
    """How much faster than another one is: the median over neighbouring rounds."""
    return round(statistics.median(other / spent for other, spent in zip(others, own, strict=True)), 3)


def peak_memory(work: int, who: str, threads: int, clients: int) -> int:
    """Runs one round in a process of its own and returns the most bytes of memory that it held."""
    sizes = ["--threads", str(threads), "--clients", str(clients)]
    command = [sys.executable, "-m", "launch", "bench", "--only", f"{work}/{who}", *sizes]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
