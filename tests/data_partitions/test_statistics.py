"""What a partition's statistics say, by hand and against one client after another."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_partitions.partition import Partition
from data_partitions.statistics import label_skew, users_per_client


@st.composite
def dealt(draw: st.DrawFn) -> tuple[Partition, np.ndarray]:
    """A partition that may leave out rows and clients, and labels that may be large or negative."""
    labels = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 10**12, -5]), max_size=60))
    clients = draw(st.integers(1, 12))
    owners = draw(st.lists(st.integers(-1, clients - 1), min_size=len(labels), max_size=len(labels)))
    rows = [np.flatnonzero(np.array(owners) == client) for client in range(clients)]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Partition(offsets, np.concatenate(rows)), np.array(labels, dtype=np.int64)


def test_four_clients_by_hand() -> None:
    """Eight examples, four of label 0, two of 1 and two of 4: the whole has 1.5 bits."""
    labels = np.array([0, 0, 0, 0, 1, 1, 4, 4])
    partition = Partition(np.array([0, 2, 6, 6, 8]), np.array([0, 1, 2, 3, 4, 6, 5, 7]))
    skew = label_skew(partition, labels)
    assert skew.values.tolist() == [0, 1, 4]
    assert skew.totals.tolist() == [4, 2, 2]
    assert skew.examples.tolist() == [2, 4, 2]
    assert skew.labels.tolist() == [1, 3, 2]
    assert skew.entropy.tolist() == [0, 1.5, 1]
    assert skew.distance.tolist() == [0.5, 0, 0.5]
    assert skew.largest_share.tolist() == [1, 0.5, 0.5]
    assert (skew.whole_entropy, skew.whole_largest_share) == (1.5, 0.5)
    users = np.array(["ann", "ann", "ann", "bob", "bob", "cy", "ann", "cy"])
    per_client, everybody = users_per_client(partition, users)
    assert (per_client.tolist(), everybody) == ([1, 2, 1], 3)


@given(dealt())
@settings(deadline=None, max_examples=150)
def test_equals_one_client_after_another(case: tuple[Partition, np.ndarray]) -> None:
    partition, labels = case
    skew = label_skew(partition, labels)
    whole = Counter(labels[partition.indices].tolist())
    assert dict(zip(skew.values.tolist(), skew.totals.tolist(), strict=True)) == whole
    assert skew.values.tolist() == sorted(whole)
    assert skew.whole_entropy == pytest.approx(entropy(whole))
    assert skew.whole_largest_share == pytest.approx(max(shares(whole).values(), default=0))
    held = [Counter(labels[partition.of(client)].tolist()) for client in range(partition.clients)]
    held = [counts for counts in held if counts]
    assert skew.examples.tolist() == [counts.total() for counts in held]
    assert skew.labels.tolist() == [len(counts) for counts in held]
    np.testing.assert_allclose(skew.entropy, [entropy(counts) for counts in held], atol=1e-12)
    np.testing.assert_allclose(skew.distance, [distance(counts, whole) for counts in held], atol=1e-12)
    np.testing.assert_allclose(skew.largest_share, [max(shares(counts).values()) for counts in held])


@given(dealt(), st.booleans())
@settings(deadline=None, max_examples=100)
def test_users_equal_one_client_after_another(case: tuple[Partition, np.ndarray], as_names: bool) -> None:
    partition, numbers = case
    user = numbers.astype(str) if as_names else numbers
    per_client, everybody = users_per_client(partition, user)
    held = [set(user[partition.of(client)].tolist()) for client in range(partition.clients)]
    assert per_client.tolist() == [len(users) for users in held if users]
    assert everybody == len(set().union(*held))


def test_a_thousand_labels_over_many_clients_need_no_table() -> None:
    """A table of 100,000 clients and 1,000 labels would have 800 MB."""
    import tracemalloc

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 1000, 300_000)
    partition = Partition.from_owners(generator.integers(0, 100_000, len(labels)), 100_000, {})
    tracemalloc.start()
    skew = label_skew(partition, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert skew.examples.sum() == len(labels)
    assert peak < 60e6


def shares(counts: Counter[int]) -> dict[int, float]:
    return {label: count / counts.total() for label, count in counts.items()}


def entropy(counts: Counter[int]) -> float:
    return -sum(share * math.log2(share) for share in shares(counts).values())


def distance(counts: Counter[int], whole: Counter[int]) -> float:
    mine, all_of_them = shares(counts), shares(whole)
    return sum(abs(mine.get(label, 0) - all_of_them[label]) for label in whole) / 2
