"""How many clients train in one forward, where the user leaves it to the machine: time one step, count the run's own.

A packed step costs the same whether its slots are busy or not, so the best number of slots depends on the machine and
on how long the clients of a cohort are. The first is measured, the second is known: nothing is guessed.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.arrangement import Partition
from fedsim.options import ClientOptions, RunOptions
from fedsim.sampling import local_steps, sample_cohort
from fedsim.schedule import assign
from fedsim.seeding import Purpose, generator

COHORTS = 20
"""How many of the run's first cohorts are counted."""

CLEARLY_FASTER = 0.97
"""Packing must take at most this fraction of the time of one after another: below that a measurement says nothing."""

Rows = list[list[int]]
"""Of the clients of one worker in one round: how many examples each of their steps has."""


@dataclass(frozen=True)
class StepSeconds:
    """What one step takes here.

    Attributes:
        single: by the number of examples, of one client after another; at least one.
        packed: by the number of slots, all of them busy with full batches; none where nothing can be packed.
    """

    single: dict[int, float]
    packed: dict[int, float]

    def of_rows(self, rows: int) -> float:
        """Seconds of a step of one client with so many examples, on the line between those that were measured."""
        return _interpolate(self.single, rows)

    def of_slots(self, slots: int) -> float:
        """Seconds of a packed step of so many slots, likewise."""
        return _interpolate(self.packed, slots)


def choose_slots(seconds: StepSeconds, workloads: Sequence[Rows], most: int) -> int:
    """Chooses the number of slots under which the rounds take least.

    Args:
        seconds: what steps take here.
        workloads: of the busiest worker, round by round; see `busiest_workloads`.
        most: slots, at least 1.

    Returns:
        1 to `most`; 1, one client after another, unless packing is clearly faster.
    """
    single = sum(seconds.of_rows(rows) for clients in workloads for steps in clients for rows in steps)
    if not seconds.packed or not single:
        return 1
    totals = {
        slots: sum(packed_steps([len(steps) for steps in clients], slots) for clients in workloads)
        * seconds.of_slots(slots)
        for slots in range(2, min(most, max(seconds.packed)) + 1)
    }
    best = min(totals, key=totals.__getitem__, default=1)  # of equals the fewest
    return best if best > 1 and totals[best] <= CLEARLY_FASTER * single else 1


def packed_steps(lengths: Sequence[int], slots: int) -> int:
    """Counts the packed steps of some clients: the longest first, a slot that is free takes the next one at once.

    Args:
        lengths: local steps of each client.
        slots: at least 1.
    """
    ends = [0] * slots
    for length in sorted(lengths, reverse=True):
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def busiest_workloads(population: Partition, client: ClientOptions, run: RunOptions, workers: int) -> list[Rows]:
    """Lists what the worker with most to do has, in each of the run's first rounds.

    Args:
        population: the clients that are sampled.
        client: their batch size, epochs and bound on steps.
        run: cohort size, seed, and how many rounds there are.
        workers: how many share a cohort.
    """
    found = []
    for round in range(1, min(COHORTS, run.rounds) + 1):
        cohort = sample_cohort(generator(run.seed, Purpose.COHORT, round), population.clients, run.cohort_size)
        rows = [rows_of_steps(population.examples(member), client) for member in cohort]
        owners = assign([len(steps) for steps in rows], workers)
        shares: list[Rows] = [[] for _ in range(workers)]
        for owner, steps in zip(owners, rows, strict=True):
            shares[owner].append(steps)
        found.append(max(shares, key=lambda share: sum(map(len, share))))
    return found


def rows_of_steps(examples: int, client: ClientOptions) -> list[int]:
    """How many examples each local step of a client with so many has: the last one of every epoch may have fewer."""
    size = client.batch_size
    epoch = [min(size, examples - first) for first in range(0, examples, size)]
    steps = local_steps(examples, size, client.local_epochs, client.max_steps)
    return (epoch * client.local_epochs)[:steps]


def slot_counts(most: int) -> list[int]:
    """Which numbers of slots are worth measuring: doubling from 2, and the most there can be use for."""
    counts = [2**power for power in range(1, most.bit_length()) if 2**power < most]
    return [*counts, most] if most > 1 else []


def least_seconds(measure: Callable[[int], float], keys: Sequence[int], repeats: int) -> dict[int, float]:
    """Measures in turn, several times, and keeps the least of each: what others on the machine add is never less.

    Args:
        measure: returns the seconds of one try.
        keys: what to measure.
        repeats: tries of each, at least 1.
    """
    found: dict[int, float] = {}
    for _ in range(repeats):
        for key in keys:
            found[key] = min(measure(key), found.get(key, np.inf))
    return found


def _interpolate(measured: dict[int, float], at: int) -> float:
    keys = sorted(measured)
    if at > keys[-1] and len(keys) > 1:  # np.interp would stay flat
        below, last = keys[-2:]
        return measured[last] + (at - last) * (measured[last] - measured[below]) / (last - below)
    return float(np.interp(at, keys, [measured[key] for key in keys]))
