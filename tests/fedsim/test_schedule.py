from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.schedule import assign

COSTS = st.lists(st.integers(0, 30), min_size=1, max_size=6)


def longest(costs: list[int], owners: list[int] | tuple[int, ...], workers: int) -> int:
    return max(sum(c for c, owner in zip(costs, owners, strict=True) if owner == w) for w in range(workers))


@settings(deadline=None, max_examples=60)
@given(COSTS, st.integers(1, 3))
def test_the_longest_worker_is_within_grahams_bound(costs: list[int], workers: int) -> None:
    """At most 4/3 - 1/(3 workers) over the best of all assignments, each of which is tried here."""
    best = min(longest(costs, owners, workers) for owners in product(range(workers), repeat=len(costs)))
    assert longest(costs, assign(costs, workers), workers) * 3 * workers <= (4 * workers - 1) * best


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 8))
def test_everybody_has_one_worker_and_the_same_again(costs: list[int], workers: int) -> None:
    owners = assign(costs, workers)
    assert len(owners) == len(costs)
    assert set(owners) <= set(range(workers))
    assert owners == assign(tuple(costs), workers)


def test_longest_first_beats_the_order_of_the_cohort() -> None:
    assert assign([1, 1, 2], 2) == [1, 1, 0]
    assert longest([1, 1, 2], [0, 1, 0], 2) == 3


def test_equal_costs_spread_evenly() -> None:
    owners = assign([5] * 12, 4)
    assert [owners.count(worker) for worker in range(4)] == [3] * 4


def test_clients_that_cost_nothing_burden_nobody() -> None:
    costs = [0, 3, 0, 2, 0, 2, 0]
    owners = assign(costs, 2)
    assert len(owners) == 7
    assert longest(costs, owners, 2) == 4
    assert assign([0, 0, 0], 1) == [0, 0, 0]


def test_more_workers_than_clients_leaves_some_idle() -> None:
    assert len(set(assign([4, 5], 6))) == 2
