"""What every rule keeps: each example with exactly one client, the same for the same seed; and each by an example."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_partitions
from data_partitions.errors import DataError
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.dealing import whole_parts
from data_partitions.partitioners.dirichlet import Dirichlet
from data_partitions.partitioners.feature_skew import FeatureSkew
from data_partitions.partitioners.grouped_natural import GroupedNatural
from data_partitions.partitioners.iid import IID
from data_partitions.partitioners.label_dirichlet import LabelDirichlet
from data_partitions.partitioners.mixed_natural import MixedNatural
from data_partitions.partitioners.natural import Natural
from data_partitions.partitioners.pathological import Pathological
from data_partitions.partitioners.quantity_skew import QuantitySkew
from data_partitions.partitioners.shards import Shards

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)
seeds = st.integers(0, 2**32)
some = st.integers(1, 40)
kinds = st.one_of(
    st.tuples(st.just("noise"), st.none() | st.floats(0, 1e300)),
    st.tuples(st.just("rotation"), st.none() | st.floats(0, 180)),
)
alphas = st.one_of(st.floats(1e-3, 10), st.sampled_from([5e-324, 1e-12, 1e6, 1.7e308]))


def split(rule: Partitioner, labels: Any, user: Any = None, seed: int = 0) -> Partition:
    users = None if user is None else np.asarray(user)
    return rule.split(np.asarray(labels), users, np.random.default_rng(seed))


def held(partition: Partition, values: Any) -> list[list[Any]]:
    """Each client's values."""
    return [np.asarray(values)[partition.of(client)].tolist() for client in range(partition.clients)]


def counts_of(partition: Partition, labels: np.ndarray) -> np.ndarray:
    """How many of each label each client holds, (C, L)."""
    return np.stack([np.bincount(row, minlength=labels.max() + 1) for row in held(partition, labels)])


def can_hold(labels: np.ndarray, clients: int, k: int) -> bool:
    examples = np.unique(labels, return_counts=True)[1]
    return len(examples) <= clients * k <= np.minimum(examples, clients).sum()


def with_minimum(rule: type) -> Callable[..., Partitioner]:
    def make(draw: Any, labels: np.ndarray, users: int) -> Partitioner:
        clients = draw(st.integers(1, min(40, len(labels))))
        made: Partitioner = rule(clients, draw(alphas), draw(st.integers(0, len(labels) // clients)))
        return made

    return make


def pathological(draw: Any, labels: np.ndarray, users: int) -> Partitioner:
    clients, k = draw(some), draw(st.integers(1, 6))
    return Pathological(clients, k) if can_hold(labels, clients, k) else Pathological(1, len(np.unique(labels)))


RULES: dict[str, Callable[[Any, np.ndarray, int], Partitioner]] = {
    "Dirichlet": lambda draw, labels, users: Dirichlet(draw(some), draw(alphas)),
    "FeatureSkew": lambda draw, labels, users: FeatureSkew(draw(some), *draw(kinds)),
    "GroupedNatural": lambda draw, labels, users: GroupedNatural(draw(st.integers(1, users))),
    "IID": lambda draw, labels, users: IID(draw(some)),
    "LabelDirichlet": with_minimum(LabelDirichlet),
    "MixedNatural": lambda draw, labels, users: MixedNatural(draw(st.floats(0, 1))),
    "Natural": lambda draw, labels, users: Natural(),
    "Pathological": pathological,
    "QuantitySkew": with_minimum(QuantitySkew),
    "Shards": lambda draw, labels, users: Shards(draw(some), draw(st.integers(1, 5))),
}
BY_USER = {"GroupedNatural", "MixedNatural", "Natural"}


def test_every_rule_is_in_the_table() -> None:
    files = Path(data_partitions.__path__[0]).rglob("*.py")
    classes = [node for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    assert {node.name for node in classes if "Partitioner" in [ast.unparse(base) for base in node.bases]} == set(RULES)


@pytest.mark.parametrize("name", RULES)
@given(labels=label_lists, seed=seeds, draws=st.data())
@settings(deadline=None, max_examples=40)
def test_what_all_rules_promise(
    name: str, labels: np.ndarray, seed: int, draws: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    user = np.random.default_rng(seed).integers(0, draws.draw(some), len(labels)) if name in BY_USER else None
    users = 0 if user is None else len(np.unique(user))
    rule = RULES[name](draws.draw, labels, users)
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        partition = split(rule, labels, user, seed)
    np.testing.assert_array_equal(np.sort(partition.indices), np.arange(len(labels)))
    assert partition.clients == getattr(rule, "clients", users)
    assert partition.sizes.min() >= getattr(rule, "min_examples", 0)
    assert [partition.examples(c) for c in range(partition.clients)] == partition.sizes.tolist()
    assert [len(partition.of(c)) for c in range(partition.clients)] == partition.sizes.tolist()
    assert json.loads(json.dumps(partition.arguments)) == {"partitioner": name, **vars(rule)}
    assert split(rule, labels, user, seed).digest() == partition.digest()
    path = tmp_path_factory.getbasetemp() / f"{name}.npz"
    partition.save(path)
    loaded = Partition.load(path)
    assert (loaded.digest(), loaded.arguments) == (partition.digest(), partition.arguments)


RANDOM = [Dirichlet(5), FeatureSkew(5), IID(5), LabelDirichlet(5), QuantitySkew(5), Shards(5), Pathological(5)]


@pytest.mark.parametrize("rule", [*RANDOM, GroupedNatural(5), MixedNatural(0.2)], ids=lambda rule: type(rule).__name__)
def test_seeds_differ(rule: Partitioner) -> None:
    labels = np.arange(100) % 10
    user = np.arange(100) // 4 if type(rule).__name__ in BY_USER else None
    assert len({split(rule, labels, user, seed).digest() for seed in range(5)}) == 5


def test_shares_become_whole_numbers_by_rounding_their_running_total() -> None:
    assert whole_parts(np.array([0.5, 0.25, 0.25]), 5).tolist() == [2, 2, 1]  # totals 2.5, 3.75, 5 become 2, 4, 5


@given(label_lists, some, seeds)
@settings(deadline=None, max_examples=40)
def test_iid_sizes_differ_by_at_most_one(labels: np.ndarray, clients: int, seed: int) -> None:
    assert np.ptp(split(IID(clients), labels, None, seed).sizes) <= 1


@given(st.lists(st.sampled_from(["ann", "bob", "cy", "di"]), min_size=1, max_size=60))
@settings(deadline=None, max_examples=40)
def test_natural_numbers_users_by_first_appearance(users: list[str]) -> None:
    partition = split(Natural(), np.zeros(len(users)), users)
    assert [sorted(set(names)) for names in held(partition, users)] == [[name] for name in dict.fromkeys(users)]


def test_alpha_sets_the_skew() -> None:
    """The share of a client's most frequent label falls from about 1 to about 1/10 as alpha grows."""
    labels = np.arange(20_000) % 10
    tops = []
    for alpha in (0.01, 0.5, 1000.0):
        counts = counts_of(split(Dirichlet(50, alpha), labels), labels)
        counts = counts[counts.sum(1) > 0]
        tops.append(np.mean(counts.max(1) / counts.sum(1)))
    assert tops[0] > 0.85
    assert 0.25 < tops[1] < 0.6
    assert tops[2] < 0.12


def test_dirichlet_shares_follow_the_gamma_law() -> None:
    """The logarithmic draw is the textbook's: proportions of mean 1/L and variance (1/L)(1 - 1/L) / (L alpha + 1)."""
    labels = np.arange(100_000) % 4
    counts = counts_of(split(Dirichlet(2000, 0.5), labels), labels)
    proportions = counts / counts.sum(1, keepdims=True)
    assert proportions.mean(0) == pytest.approx(np.full(4, 0.25), abs=0.02)
    assert proportions.var(0) == pytest.approx(np.full(4, 0.0625), rel=0.1)


def test_label_dirichlet_spreads_each_label_by_its_own_draw() -> None:
    """Of 4000 labels each: shares over 10 clients of mean 1/10 and variance (1/10)(9/10) / (10 alpha + 1)."""
    labels = np.arange(800_000) % 4000
    shares = counts_of(split(LabelDirichlet(10, 0.5, 0), labels), labels) / 200
    assert shares.mean(1) == pytest.approx(np.full(10, 0.1), abs=0.01)
    assert shares.var(1) == pytest.approx(np.full(10, 0.015), rel=0.2)
    assert shares.var() == pytest.approx(0.015, rel=0.03)


def test_label_dirichlet_sizes_differ_more_than_those_of_dirichlet() -> None:
    labels = np.arange(20_000) % 10
    per_label, per_client = (split(rule(50, 0.1), labels).sizes.std() for rule in (LabelDirichlet, Dirichlet))
    assert per_label > 2 * per_client


def test_label_dirichlet_tops_up_only_who_is_short() -> None:
    """At a vanishing alpha each label lies with one of 5 clients; the others take 2 each, nothing else moves."""
    labels = np.arange(40) % 2
    for seed in range(20):
        plain, filled = (split(LabelDirichlet(5, 1e-12, least), labels, None, seed) for least in (0, 2))
        assert sorted(filled.sizes)[: (plain.sizes == 0).sum()] == [2] * (plain.sizes == 0).sum()
        for client in np.flatnonzero(plain.sizes):
            assert set(filled.of(client)) <= set(plain.of(client))


@pytest.mark.parametrize(("alpha", "sizes"), [(1e9, [5, 5, 5, 5]), (1e-12, [2, 2, 2, 14])])
def test_quantity_skew_gives_the_minimum_and_deals_the_rest(alpha: float, sizes: list[int]) -> None:
    assert sorted(split(QuantitySkew(4, alpha, 2), np.zeros(20)).sizes) == sizes


def test_quantity_skew_leaves_labels_alike() -> None:
    labels = np.arange(40_000) % 4
    counts = counts_of(split(QuantitySkew(10, 0.5, 1000), labels), labels)
    assert np.ptp(counts.sum(1)) > 2000
    assert counts / counts.sum(1, keepdims=True) == pytest.approx(np.full((10, 4), 0.25), abs=0.05)


def test_shards_are_cut_from_the_data_sorted_by_label() -> None:
    """Rows by label: 1 3 6 9 | 0 4 7 | 2 5 8; the four shards of 3, 2, 3 and 2 are these."""
    labels = [1, 0, 2, 0, 1, 2, 0, 1, 2, 0]
    shards = [{1, 3, 6}, {9, 0}, {4, 7, 2}, {5, 8}]
    for seed in range(10):
        first, second = (set(rows) for rows in held(split(Shards(2, 2), labels, None, seed), range(10)))
        own = [shard for shard in shards if shard <= first]
        assert len(own) == 2
        assert second == set(range(10)) - set.union(*own)


def test_a_class_is_split_evenly_over_as_many_holders_as_any_other() -> None:
    """3 clients of 2 classes are 6 places for 3 classes: 2 holders each, of 3 + 3, 2 + 2 and 2 + 1 examples."""
    labels = np.repeat([0, 1, 2], [6, 4, 3])
    for seed in range(10):
        counts = counts_of(split(Pathological(3, 2), labels, None, seed), labels)
        assert np.sort(counts, axis=0).tolist() == [[0, 0, 0], [3, 2, 1], [3, 2, 2]]
        assert ((counts > 0).sum(1) == 2).all()


def test_a_rare_class_has_fewer_holders() -> None:
    """8 places; class 1 has one example, so it takes one place, and the others share seven: 3 and 4."""
    labels = np.repeat([0, 1, 2], [20, 1, 30])
    counts = counts_of(split(Pathological(4, 2), labels), labels)
    assert sorted((counts > 0).sum(0).tolist()) == [1, 3, 4]
    assert ((counts > 0).sum(1) == 2).all()


def test_any_classes_may_meet_at_a_client() -> None:
    """Of 9000 clients with 2 of 10 classes about 200 have any of the 45 pairs."""
    labels = np.arange(40_000) % 10
    pairs = [tuple(np.unique(row)) for row in held(split(Pathological(9000, 2), labels), labels)]
    assert min(map(pairs.count, set(pairs))) > 120
    assert len(set(pairs)) == 45


@given(label_lists, st.integers(1, 12), st.integers(1, 7), seeds)
@settings(deadline=None, max_examples=150)
def test_pathological_gives_exactly_k_classes_or_refuses(labels: np.ndarray, clients: int, k: int, seed: int) -> None:
    if not can_hold(labels, clients, k):
        with pytest.raises(DataError, match=r"in all, .*: (raise|lower) either"):
            split(Pathological(clients, k), labels)
        return
    counts = counts_of(split(Pathological(clients, k), labels, None, seed), labels)
    assert ((counts > 0).sum(1) == k).all()
    assert all(np.ptp(column[column > 0]) <= 1 for column in counts.T if column.any())


def test_grouped_natural_deals_the_largest_user_first() -> None:
    """Users of 5, 4, 3, 3 and 3: 5 to the first, 4 and 3 to the second, 3 to the first, 3 to the second."""
    user = np.repeat(list("abcde"), [3, 4, 3, 5, 3])
    for seed in range(10):
        first, second = (set(names) for names in held(split(GroupedNatural(2), user, user, seed), user))
        assert (len(first), len(second), first & second) == (2, 3, set())
        assert "d" in first
        assert "b" in second


def test_mixed_natural_ranges_from_natural_to_iid_in_natural_sizes() -> None:
    user = np.random.default_rng(0).permutation(np.repeat(np.arange(20), np.arange(20) * 10 + 10))
    natural = split(Natural(), user, user)
    stays = []
    for fraction in (0, 0.5, 1):
        mixed = split(MixedNatural(fraction), user, user)
        assert mixed.sizes.tolist() == natural.sizes.tolist()
        stays.append([len(np.intersect1d(mixed.of(c), natural.of(c))) / natural.examples(c) for c in range(20)])
    assert stays[0] == [1] * 20
    assert min(stays[1]) >= 0.5
    assert np.mean(stays[1]) == pytest.approx(0.5 + 0.5 / 20, abs=0.03)
    assert np.mean(stays[2]) == pytest.approx(1 / 20, abs=0.03)


def test_mixed_natural_keeps_the_fraction_for_users_of_one_example() -> None:
    moved = split(MixedNatural(0.1), np.zeros(1000), np.arange(1000)).indices != np.arange(1000)
    assert 90 <= moved.sum() <= 100


@pytest.mark.parametrize("clients", [0, -3, 2.5, True, "10"])
@pytest.mark.parametrize(
    "rule", [Dirichlet, FeatureSkew, GroupedNatural, IID, LabelDirichlet, Pathological, QuantitySkew, Shards]
)
def test_refuses_a_number_of_clients(rule: type, clients: object) -> None:
    with pytest.raises(DataError, match=r"partition\.clients is .* expected a whole number of at least 1"):
        rule(clients=clients)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), "big", True])
@pytest.mark.parametrize("rule", [Dirichlet, LabelDirichlet, QuantitySkew])
def test_refuses_alpha(rule: type, alpha: object) -> None:
    with pytest.raises(DataError, match=r"partition\.alpha is .* expected a finite number above 0"):
        rule(alpha=alpha)


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (LabelDirichlet, {"min_examples": -1}, "min_examples is -1, expected a whole number of at least 0"),
        (QuantitySkew, {"min_examples": 0.5}, r"min_examples is 0\.5, expected a whole number of at least 0"),
        (Shards, {"shards_per_client": 0}, "shards_per_client is 0, expected a whole number of at least 1"),
        (Pathological, {"classes_per_client": "2"}, "classes_per_client is '2', expected a whole number of at least 1"),
        (MixedNatural, {"iid_fraction": 1.01}, r"iid_fraction is 1\.01, expected a number from 0 to 1"),
        (MixedNatural, {"iid_fraction": float("nan")}, "iid_fraction is nan, expected a number from 0 to 1"),
        (MixedNatural, {"iid_fraction": True}, "iid_fraction is True, expected a number from 0 to 1"),
    ],
)
def test_refuses_other_arguments(rule: type, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rule(**arguments)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (LabelDirichlet(4, 1.0, 3), "min_examples is 3 for 4 clients, expected at most 2 as there are 10 examples"),
        (QuantitySkew(11), "min_examples is 1 for 11 clients, expected at most 0 as there are 10 examples"),
        (Pathological(2, 1), "classes_per_client is 1 for 2 clients, expected at least 3 in all"),
        (Pathological(2, 4), "expected at most 6 in all, as there are 3 classes of 3 to 4 examples"),
    ],
)
def test_refuses_data_that_the_rule_cannot_deal(rule: Partitioner, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(rule, np.arange(10) % 3)


@pytest.mark.parametrize("rule", [Natural(), MixedNatural(), GroupedNatural(2)], ids=lambda rule: type(rule).__name__)
def test_needs_users(rule: Partitioner) -> None:
    with pytest.raises(DataError, match=f"{type(rule).__name__} was given data without users"):
        split(rule, np.zeros(3))
    with pytest.raises(DataError, match="2 users for 3 examples"):
        split(rule, np.zeros(3), ["a", "b"])


def test_needs_a_user_for_every_client() -> None:
    with pytest.raises(DataError, match="clients is 3, expected at most 2, the number of users"):
        split(GroupedNatural(3), np.zeros(4), ["a", "b", "a", "b"])
