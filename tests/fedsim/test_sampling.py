from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.sampling import local_batches, sample_cohort
from fedsim.seeding import Purpose, generator

SEEDS = st.integers(0, 2**32 - 1)


def cohort(seed: int, round: int, population: int, size: int) -> list[int]:
    return sample_cohort(generator(seed, Purpose.COHORT, round), population, size)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 10_000), st.data())
def test_a_cohort_is_sorted_without_repeats_and_the_same_again(seed: int, population: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(population, 200)))
    chosen = cohort(seed, 1, population, size)
    assert len(chosen) == size
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(population))
    assert chosen == cohort(seed, 1, population, size)


def test_everybody_takes_part_where_the_cohort_is_the_population() -> None:
    assert cohort(0, 1, 7, 7) == list(range(7))


def test_cohorts_differ_by_round_and_by_seed() -> None:
    chosen = {tuple(cohort(seed, round, 1000, 10)) for seed in range(10) for round in range(1, 11)}
    assert len(chosen) == 100


def test_cohorts_are_uniform() -> None:
    """Every client, and every pair of clients, takes part about equally often."""
    rounds, population, size = 4000, 8, 3
    together = np.zeros((population, population))
    for round in range(rounds):
        taken = np.zeros(population)
        taken[cohort(1, round, population, size)] = 1
        together += np.outer(taken, taken)
    share, pair = size / population, size * (size - 1) / (population * (population - 1))
    for found, expected in (
        (np.diag(together), share),
        (together[np.triu_indices(population, 1)], pair),
    ):
        assert np.abs(found - rounds * expected).max() < 4.5 * np.sqrt(rounds * expected * (1 - expected))


@settings(deadline=None)
@given(
    seed=SEEDS,
    examples=st.lists(st.integers(0, 10**6), max_size=40, unique=True),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(1, 20),
)
def test_every_epoch_visits_every_example_once(
    seed: int, examples: list[int], batch_size: int, epochs: int, max_steps: int | None
) -> None:
    """Up to max_steps, which only cuts off what comes after; empty and single examples among the cases."""
    rows = np.array(examples, dtype=np.int64)
    batches = local_batches(generator(seed, Purpose.BATCHES), rows, batch_size, epochs, max_steps)
    whole = local_batches(generator(seed, Purpose.BATCHES), rows, batch_size, epochs, None)
    per_epoch = -(-len(examples) // batch_size)
    assert whole.shape == (per_epoch * epochs, batch_size)
    assert whole.dtype == np.int64
    for epoch in range(epochs):
        visited = whole[epoch * per_epoch : (epoch + 1) * per_epoch].reshape(-1)
        assert sorted(visited[: len(examples)].tolist()) == sorted(examples)
        assert (visited[len(examples) :] == -1).all()
    assert (np.diff((whole >= 0).astype(int), axis=1) <= 0).all()  # padding stands at the end of a row
    assert ((whole >= 0).any(axis=1)).all()  # and no step is padding alone
    if max_steps is None:
        assert np.array_equal(batches, whole)
    else:
        steps = min(max_steps, len(whole))
        assert batches.shape == (steps, batch_size)
        cut = whole[:steps] if epochs == 1 else whole[: min(steps, per_epoch)]
        assert np.array_equal(batches[: len(cut)], cut)
        assert set(batches.reshape(-1).tolist()) <= {*examples, -1}


@settings(deadline=None)
@given(
    seed=SEEDS,
    lengths=st.lists(st.integers(1, 9), max_size=40),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(1, 20),
)
def test_batches_of_like_length_visit_every_example_once(
    seed: int, lengths: list[int], batch_size: int, epochs: int, max_steps: int | None
) -> None:
    """An epoch's batches are neighbours in the order of lengths, and come in any order themselves."""
    rows, known = np.arange(len(lengths)), np.array(lengths, dtype=np.int64)
    whole = local_batches(generator(seed, Purpose.BATCHES), rows, batch_size, epochs, None, known)
    per_epoch = -(-len(lengths) // batch_size)
    for epoch in range(epochs):
        steps = whole[epoch * per_epoch : (epoch + 1) * per_epoch]
        taken = [step[step >= 0] for step in steps]
        assert sorted(np.concatenate(taken or [rows]).tolist()) == rows.tolist()
        ranges = sorted((known[step].min(), known[step].max()) for step in taken)
        assert all(before[1] <= after[0] for before, after in pairwise(ranges))
        assert (np.diff((steps >= 0).astype(int), axis=1) <= 0).all()
    batches = local_batches(generator(seed, Purpose.BATCHES), rows, batch_size, epochs, max_steps, known)
    assert len(batches) == min(max_steps or len(whole), len(whole))
    assert np.array_equal(batches, whole[: len(batches)])


def test_batches_of_like_length_come_in_an_order_of_their_own() -> None:
    """Or every client would end each epoch on its longest texts."""
    lengths = np.arange(40)
    firsts = {local_batches(generator(s, Purpose.BATCHES), lengths, 4, 1, 1, lengths).min() for s in range(20)}
    assert len(firsts) > 4


def test_a_client_without_examples_has_no_steps() -> None:
    batches = local_batches(generator(0, Purpose.BATCHES), np.zeros(0, np.int64), 4, 3, 5)
    assert batches.shape == (0, 4)


def test_one_example_is_a_step_with_padding() -> None:
    batches = local_batches(generator(0, Purpose.BATCHES), np.array([9]), 3, 2, None)
    assert batches.tolist() == [[9, -1, -1], [9, -1, -1]]


def test_max_steps_bounds_the_steps_of_all_epochs_together() -> None:
    batches = local_batches(generator(0, Purpose.BATCHES), np.arange(10), 4, 3, 5)
    assert batches.shape == (5, 4)
    assert sorted(batches[:3].reshape(-1).tolist()) == [-1, -1, *range(10)]
    assert len(set(batches[3:].reshape(-1).tolist())) == 8


def test_every_epoch_has_its_own_order() -> None:
    batches = local_batches(generator(0, Purpose.BATCHES), np.arange(30), 10, 4, None)
    orders = {tuple(epoch.reshape(-1).tolist()) for epoch in np.split(batches, 4)}
    assert len(orders) == 4
    assert tuple(range(30)) not in orders


def test_the_clients_own_rows_stay_as_they_are() -> None:
    """They are a view of the partition, which every round reads."""
    rows = np.arange(10)
    local_batches(generator(0, Purpose.BATCHES), rows, 4, 2, None)
    assert rows.tolist() == list(range(10))
