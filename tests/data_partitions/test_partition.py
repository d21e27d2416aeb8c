"""What every partition keeps: each example with exactly one client, the same for the same seed, whole on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_partitions.dirichlet import Dirichlet
from data_partitions.errors import DataError
from data_partitions.iid import IID
from data_partitions.natural import Natural
from data_partitions.partition import Partition, Partitioner

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)
seeds = st.integers(0, 2**32)
clients = st.integers(1, 40)
alphas = st.one_of(st.floats(1e-3, 10), st.sampled_from([5e-324, 1e-12, 1e6, 1.7e308]))


def check(partitioner: Partitioner, labels: np.ndarray, seed: int, user: np.ndarray | None = None) -> Partition:
    """Holds a partitioner to what all of them promise."""
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        partition = partitioner.split(labels, user, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(partition.indices), np.arange(len(labels)))
    assert partition.sizes.sum() == len(labels)
    assert [partition.examples(c) for c in range(partition.clients)] == partition.sizes.tolist()
    assert [len(partition.of(c)) for c in range(partition.clients)] == partition.sizes.tolist()
    assert json.loads(json.dumps(partition.arguments))["partitioner"] == type(partitioner).__name__
    assert partition.digest() == partitioner.split(labels, user, np.random.default_rng(seed)).digest()
    return partition


@given(label_lists, clients, alphas, seeds)
@settings(deadline=None, max_examples=60)
def test_dirichlet_deals_every_example_once(labels: np.ndarray, clients: int, alpha: float, seed: int) -> None:
    assert check(Dirichlet(clients, alpha), labels, seed).clients == clients


@given(label_lists, clients, seeds)
@settings(deadline=None, max_examples=40)
def test_iid_sizes_differ_by_at_most_one(labels: np.ndarray, clients: int, seed: int) -> None:
    partition = check(IID(clients), labels, seed)
    assert partition.clients == clients
    assert np.ptp(partition.sizes) <= 1


@given(st.lists(st.sampled_from(["ann", "bob", "cy", "di"]), min_size=1, max_size=60))
@settings(deadline=None, max_examples=40)
def test_natural_numbers_users_by_first_appearance(users: list[str]) -> None:
    user = np.array(users)
    partition = check(Natural(), np.zeros(len(user), dtype=np.int64), 0, user)
    held = [np.unique(user[partition.of(client)]).tolist() for client in range(partition.clients)]
    assert held == [[name] for name in dict.fromkeys(users)]


def test_seeds_differ() -> None:
    labels = np.arange(100) % 10
    for partitioner in (Dirichlet(5), IID(5)):
        digests = {partitioner.split(labels, None, np.random.default_rng(seed)).digest() for seed in range(5)}
        assert len(digests) == 5


def test_alpha_sets_the_skew() -> None:
    """The share of a client's most frequent label falls from about 1 to about 1/10 as alpha grows."""
    labels = np.arange(20_000) % 10
    tops = []
    for alpha in (0.01, 0.5, 1000.0):
        partition = Dirichlet(50, alpha).split(labels, None, np.random.default_rng(0))
        held = [np.bincount(labels[partition.of(c)], minlength=10) for c in range(50) if partition.examples(c)]
        tops.append(np.mean([counts.max() / counts.sum() for counts in held]))
    assert tops[0] > 0.85
    assert 0.25 < tops[1] < 0.6
    assert tops[2] < 0.12


def test_dirichlet_shares_follow_the_gamma_law() -> None:
    """The logarithmic draw is the textbook's: proportions of mean 1/L and variance (1/L)(1 - 1/L) / (L alpha + 1)."""
    labels = np.arange(100_000) % 4
    partition = Dirichlet(2000, 0.5).split(labels, None, np.random.default_rng(0))
    held = np.stack([np.bincount(labels[partition.of(c)], minlength=4) for c in range(2000)])
    proportions = held / held.sum(1, keepdims=True)
    assert proportions.mean(0) == pytest.approx(np.full(4, 0.25), abs=0.02)
    assert proportions.var(0) == pytest.approx(np.full(4, 0.0625), rel=0.1)


@pytest.mark.parametrize("clients", [0, -3, 2.5, True, "10"])
@pytest.mark.parametrize("partitioner", [Dirichlet, IID])
def test_refuses_a_number_of_clients(partitioner: type, clients: object) -> None:
    with pytest.raises(DataError, match=r"partition\.clients is .* expected a whole number of at least 1"):
        partitioner(clients=clients)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), "big"])
def test_refuses_alpha(alpha: object) -> None:
    with pytest.raises(DataError, match=r"partition\.alpha is .* expected a finite number above 0"):
        Dirichlet(alpha=alpha)  # type: ignore[arg-type]


def test_natural_needs_users() -> None:
    with pytest.raises(DataError, match="data without users"):
        Natural().split(np.zeros(3), None, np.random.default_rng(0))
    with pytest.raises(DataError, match="2 users for 3 examples"):
        Natural().split(np.zeros(3), np.array(["a", "b"]), np.random.default_rng(0))


def test_saves_and_loads(tmp_path: Path) -> None:
    partition = Dirichlet(7, 0.1).split(np.arange(60) % 3, None, np.random.default_rng(1))
    path = tmp_path / "partition.npz"
    path.write_bytes(b"an older file")
    partition.save(path)
    loaded = Partition.load(str(path))
    np.testing.assert_array_equal(loaded.offsets, partition.offsets)
    np.testing.assert_array_equal(loaded.indices, partition.indices)
    assert loaded.arguments == {"partitioner": "Dirichlet", "clients": 7, "alpha": 0.1}
    assert loaded.digest() == partition.digest()
    assert [file.name for file in tmp_path.iterdir()] == ["partition.npz"]


def test_a_failed_save_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    path.write_bytes(b"an older file")
    unwritable = Partition(np.array([0, 1]), np.array([0]), {"generator": object()})
    with pytest.raises(TypeError):
        unwritable.save(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an older file"]


GOOD = {"offsets": np.array([0, 2, 3]), "indices": np.array([2, 0, 1]), "arguments": np.array("{}")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 3, 2])}, "expected at least two from 0 to 3"),
        ({"offsets": np.array([0, 5, 3])}, "falls after client 1"),
        ({"offsets": np.array([1, 2, 3])}, "from 1 to 3"),
        ({"offsets": np.array([], dtype=np.int64)}, "0 entries"),
        ({"offsets": np.array([0.0, 3.0])}, "expected int64"),
        ({"indices": np.array([[2, 0, 1]])}, "expected int64 in one dimension"),
        ({"indices": np.array([2, 0, 2])}, "holds 2 twice"),
        ({"indices": np.array([2, 0, -1])}, "holds -1"),
        ({"indices": np.array([2, 0, {}], dtype=object)}, "allow_pickle=False"),
        ({"arguments": np.array("{")}, "no partition"),
        ({"arguments": np.array("[]")}, "JSON list"),
        ({"indices": None}, "indices is not a file"),
    ],
)
def test_refuses_a_malformed_file(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "partition.npz"
    np.savez(path, **{name: array for name, array in {**GOOD, **change}.items() if array is not None})
    with pytest.raises(DataError, match=message) as caught:
        Partition.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    with pytest.raises(DataError, match="No such file"):
        Partition.load(path)
    np.savez(path, **GOOD)
    whole = path.read_bytes()
    with path.open("wb") as file:
        np.save(file, GOOD["indices"])
    single = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(GOOD["indices"].tobytes())] ^= 1
    for content in (b"", b"nonsense", whole[: len(whole) // 2], single, bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no partition"):
            Partition.load(path)
