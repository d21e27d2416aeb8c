import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.options import ClientOptions, RunOptions
from fedsim.pack_choice import (
    StepSeconds,
    busiest_workloads,
    choose_slots,
    least_seconds,
    packed_steps,
    rows_of_steps,
    slot_counts,
)
from fedsim.sampling import local_batches, local_steps
from tests import tiny

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def played(lengths: list[int], slots: int) -> int:
    """Plainly: step by step, as the packed trainer fills its slots."""
    waiting, busy, steps = sorted(lengths), [0] * slots, 0
    while waiting or any(busy):
        busy = [left if left or not waiting else waiting.pop() for left in busy]
        busy = [max(0, left - 1) for left in busy]
        steps += 1
    return steps


@given(LENGTHS, st.integers(1, 14))
def test_packed_steps_are_those_of_the_trainer(lengths: list[int], slots: int) -> None:
    assert packed_steps(lengths, slots) == played(lengths, slots)
    assert packed_steps(lengths, 1) == sum(lengths)
    assert packed_steps(lengths, len(lengths)) == max(lengths)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 3), st.none() | st.integers(1, 7))
def test_rows_of_steps_are_those_of_the_batches(examples: int, size: int, epochs: int, bound: int | None) -> None:
    options = ClientOptions(batch_size=size, local_epochs=epochs, max_steps=bound)
    batches = local_batches(np.random.default_rng(0), np.arange(examples), size, epochs, bound)
    assert rows_of_steps(examples, options) == (batches >= 0).sum(1).tolist()


def test_ten_equal_clients_choose_by_hand() -> None:
    """5 steps of 10 clients, a packed step of G slots taking 1 + G / 2 of the time of one client's: 5 steps of 10 slots
    take 30, 10 of 5 slots 35, 15 of 4 slots 45, and one after another takes 50."""
    seconds = StepSeconds({8: 0.5, 16: 1.0}, {2: 2.0, 4: 3.0, 8: 5.0, 10: 6.0})
    cohort = [[[16] * 5] * 10]
    assert choose_slots(seconds, cohort, 10) == 10
    assert choose_slots(seconds, cohort, 5) == 5
    assert choose_slots(seconds, [[[16] * 5]], 10) == 1  # a lone client leaves the others' slots empty
    assert choose_slots(seconds, [[[8] * 5] * 10], 10) == 1  # half batches cost half, one after another
    slow = StepSeconds({16: 1.0}, {2: 2.0, 10: 10.0})
    assert choose_slots(slow, cohort, 10) == 1
    assert choose_slots(StepSeconds({16: 1.0}, {}), cohort, 10) == 1


@given(
    st.lists(st.lists(LENGTHS, min_size=1, max_size=3), min_size=1, max_size=3),
    st.floats(0.1, 3),
    st.floats(0.01, 2),
)
def test_what_is_chosen_is_never_beaten(rounds: list[list[list[int]]], fixed: float, each: float) -> None:
    """By any number of slots, under its own prices; nor by one after another."""
    most = 8
    seconds = StepSeconds({4: 1.0}, {slots: fixed + each * slots for slots in (2, 4, 8)})
    workloads = [[[4] * len(steps) for steps in clients] for clients in rounds]
    chosen = choose_slots(seconds, workloads, most)
    costs = {
        slots: sum(packed_steps([len(s) for s in clients], slots) for clients in workloads) * (fixed + each * slots)
        for slots in range(2, most + 1)
    }
    single = sum(len(steps) for clients in workloads for steps in clients)
    if chosen > 1:
        assert costs[chosen] == pytest.approx(min(costs.values()))
        assert costs[chosen] <= single
    else:
        assert min(costs.values()) > 0.97 * single - 1e-9


def test_the_busiest_worker_has_the_longest_share() -> None:
    """Clients of 2, 1, 1 and 1 steps on two workers: one of them has three steps, whoever that is."""
    found = busiest_workloads(
        tiny.partition([8, 4, 3, 2]), ClientOptions(batch_size=4), RunOptions(rounds=3, cohort_size=4), 2
    )
    assert len(found) == 3
    assert [sum(map(len, clients)) for clients in found] == [3, 3, 3]
    alone = busiest_workloads(
        tiny.partition([8, 4, 3, 2]), ClientOptions(batch_size=4), RunOptions(rounds=1, cohort_size=4), 1
    )
    assert sorted(map(tuple, alone[0])) == [(2,), (3,), (4,), (4, 4)]


def test_counts_double_up_to_what_there_is_use_for() -> None:
    assert [slot_counts(most) for most in (1, 2, 3, 10, 16)] == [[], [2], [2, 3], [2, 4, 8, 10], [2, 4, 8, 16]]


def test_the_least_of_several_tries_counts() -> None:
    tries = itertools.count()
    found = least_seconds(lambda key: 10 * key + (5 - next(tries)) % 3, [1, 2], 3)
    assert found == {1: 10, 2: 20}


def test_seconds_between_and_beyond_what_was_measured() -> None:
    seconds = StepSeconds({4: 1.0}, {2: 1.0, 4: 2.0})
    assert [seconds.of_slots(slots) for slots in (2, 3, 4, 6)] == [1.0, 1.5, 2.0, 3.0]
    assert seconds.of_rows(9) == 1.0
    assert local_steps(9, 4, 1, None) == 3
