"""Which worker trains which client, and when. No result depends on it: updates are added in cohort order."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

WAVE_BYTES = 2**29
"""How many bytes of uploads may wait in memory, over all workers: a thousand dense adapters, or one backbone."""


def assign(costs: Sequence[int], workers: int) -> list[int]:
    """Spreads the cohort over the workers: the longest job first, each to the worker with the least to do.

    Args:
        costs: what each client of the cohort costs, in local steps, in cohort order; a client of cost 0 does nothing.
        workers: how many workers there are, at least 1.

    Returns:
        The worker of each client, in cohort order. Longest first is at most 4/3 - 1/(3 workers) over the best
        possible longest worker (Graham 1969).
    """
    owners = [0] * len(costs)
    load = [(0, worker) for worker in range(workers)]
    for position in sorted(range(len(costs)), key=lambda p: (-costs[p], p)):
        busy, worker = heapq.heappop(load)
        owners[position] = worker
        heapq.heappush(load, (busy + costs[position], worker))
    return owners


@dataclass(frozen=True)
class Wave:
    """Neighbours of a cohort, who are trained, gathered and added before the next ones begin.

    Attributes:
        first: the position of the first one in the cohort.
        owners: the worker of each.
    """

    first: int
    owners: list[int]

    @property
    def positions(self) -> range:
        """Where they stand in the cohort."""
        return range(self.first, self.first + len(self.owners))

    def owner(self, position: int) -> int:
        """The worker of one of them."""
        return self.owners[position - self.first]

    def of(self, worker: int) -> list[int]:
        """The positions of a worker's own."""
        return [at for at in self.positions if self.owner(at) == worker]


def waves(costs: Sequence[int], workers: int, upload_bytes: int) -> list[Wave]:
    """Cuts a cohort into waves, whose uploads fit into memory together, and spreads each over the workers.

    Args:
        costs: what each client costs, in cohort order; see `assign`.
        workers: how many workers there are.
        upload_bytes: the most that one client uploads, at least 1.

    Returns:
        In cohort order; one wave where all uploads take no more than `WAVE_BYTES`. A wave has as many clients as there
        are workers at least.
    """
    at_once = max(workers, WAVE_BYTES // upload_bytes)
    return [Wave(first, assign(costs[first : first + at_once], workers)) for first in range(0, len(costs), at_once)]
