"""What each number of slots does on a work: client steps a second, memory, and which one `client.pack auto` takes."""

import statistics
import time
from dataclasses import dataclass
from functools import partial

from fedsim.pack_choice import choose_slots
from launch.benchmarks.contestants import Contestant
from launch.benchmarks.local_work import Arena
from launch.benchmarks.rounds import median_ratio
from launch.benchmarks.works import Work
from launch.trainers import measure

COUNTS = (1, 2, 4, 7, 10)
"""Of ten clients a round: more slots would stand empty."""
BY_SLOTS = {f"slots_{count}": Contestant(partial(Arena.engine, slots=count)) for count in COUNTS}


@dataclass(frozen=True)
class Packing:
    """One number of slots as it was measured.

    Attributes:
        slots: clients in one forward.
        client_steps_per_second: the median of whole rounds.
        ratio_to_one: how much faster than one after another: the median of the ratios of neighbouring rounds.
    """

    slots: int
    client_steps_per_second: float
    ratio_to_one: float


def packings(work: Work, repeats: int) -> tuple[list[Packing], int]:
    """Measures numbers of slots in turn, and asks what the machine would choose.

    Args:
        work: what a round is.
        repeats: timed rounds of each.

    Returns:
        Every number, and the one that was chosen, of 1 to the clients of a round.
    """
    with Arena(work) as arena:
        rounds = {slots: arena.engine(slots) for slots in COUNTS}
        chosen = _chosen(arena)
        rounds.setdefault(chosen, arena.engine(chosen))
        seconds: dict[int, list[float]] = {slots: [] for slots in sorted(rounds)}
        for repeat in range(-1, repeats):
            for slots, spent in seconds.items():
                started = time.perf_counter()
                rounds[slots](repeat + 2)
                if repeat >= 0:  # the first one warms up
                    spent.append(time.perf_counter() - started)
    rows = [
        Packing(slots, work.clients * work.steps / statistics.median(spent), median_ratio(seconds[1], spent))
        for slots, spent in seconds.items()
    ]
    return rows, chosen


def _chosen(arena: Arena) -> int:
    """What `client.pack auto` chooses for rounds of this work."""
    work = arena.work
    workload = [[work.batch_size] * work.steps for _ in range(work.clients)]
    return choose_slots(measure(arena.parts(), work.clients), [workload], work.clients)
