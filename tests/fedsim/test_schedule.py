from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.schedule import WAVE_BYTES, assign, waves

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


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 2 * WAVE_BYTES))
def test_waves_are_the_cohort_in_order(costs: list[int], workers: int, upload_bytes: int) -> None:
    found = waves(costs, workers, upload_bytes)
    assert [at for wave in found for at in wave.positions] == list(range(len(costs)))
    for wave in found:
        assert wave.owners == assign([costs[at] for at in wave.positions], workers)
        assert sorted(at for worker in range(workers) for at in wave.of(worker)) == list(wave.positions)
        assert len(wave.owners) * upload_bytes <= max(WAVE_BYTES, workers * upload_bytes)
    assert all(len(wave.owners) >= workers for wave in found[:-1])


def test_small_uploads_travel_together_and_a_backbone_alone() -> None:
    adapter, backbone = 600_000, 500_000_000
    assert [wave.owners for wave in waves([1] * 10, 1, adapter)] == [[0] * 10]
    assert [wave.owners for wave in waves([1] * 3, 1, backbone)] == [[0], [0], [0]]
    assert [(wave.first, len(wave.owners)) for wave in waves([1] * 5, 2, backbone)] == [(0, 2), (2, 2), (4, 1)]
