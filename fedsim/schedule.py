"""Which worker trains which client. No result depends on it: updates are added in cohort order."""

import heapq
from collections.abc import Sequence


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
