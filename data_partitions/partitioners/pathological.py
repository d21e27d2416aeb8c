"""Label skew by number: every client knows a few classes only."""

from __future__ import annotations

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.errors import DataError
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.dealing import rows_by_label

SWAPS_PER_CLASS = 8
"""How often each class of a client is offered to another client, on average, until who holds what counts as random."""


class Pathological(Partitioner):
    """Gives every client exactly k classes, each class split evenly over those that hold it.

    Every class has about as many holders as any other, but never more than it has examples; which classes meet at a
    client is random. Sizes differ where classes do. Collins et al. 2021 (FedRep) set the same number of classes per
    client, but equal sizes.

    Source: Li et al. 2022, "Federated Learning on Non-IID Data Silos", quantity-based label imbalance, #C=k.

    Args:
        clients: how many clients, at least 1.
        classes_per_client: k, at least 1 and at most the number of classes that occur.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100, classes_per_client: int = 2) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)
        self.classes_per_client = require_whole("partition.classes_per_client", classes_per_client, 1, 2)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`. Users are not looked at.

        Raises:
            DataError: where not every client can hold k classes, or not every class can be held.
        """
        by_label = rows_by_label(labels)
        holders = self._count_holders(np.array([len(rows) for rows in by_label]), generator)
        held = _shuffle(np.repeat(np.arange(len(by_label)), holders), self.clients, generator)
        by_class = np.split(np.argsort(held.reshape(-1), kind="stable") % self.clients, np.cumsum(holders)[:-1])
        owners = np.empty(len(labels), dtype=np.int64)
        for rows, who in zip(by_label, by_class, strict=True):
            owners[generator.permutation(rows)] = np.resize(generator.permutation(who), len(rows))
        arguments = {"clients": self.clients, "classes_per_client": self.classes_per_client}
        return Partition.from_owners(owners, self.clients, {"partitioner": "Pathological", **arguments})

    def _count_holders(self, examples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """How many clients hold each class, given its examples (L,): as even as the rarer classes allow, at least 1."""
        places, most = self.clients * self.classes_per_client, np.minimum(examples, self.clients)
        given = f"partition.classes_per_client is {self.classes_per_client} for {self.clients} clients"
        if places < len(examples):
            raise DataError(f"{given}, expected at least {len(examples)} in all, one for each class: raise either")
        if places > most.sum():
            raise DataError(
                f"{given}, expected at most {most.sum()} in all, as there are {len(examples)} classes of"
                f" {examples.min()} to {examples.max()} examples: lower either"
            )
        holders = np.empty(len(examples), dtype=np.int64)
        order = generator.permutation(len(examples))
        order = order[np.argsort(most[order], kind="stable")]
        for done, label in enumerate(order):  # the rarest first: what they cannot take, the others share
            holders[label] = min(most[label], places // (len(order) - done))
            places -= holders[label]
        return holders


def _shuffle(classes: np.ndarray, clients: int, generator: np.random.Generator) -> np.ndarray:
    """Deals classes, sorted and none more than `clients` times, to clients at random, to nobody the same twice.

    Dealt in turn like cards, nobody gets one twice. Then pairs of clients exchange a class each, where that leaves both
    without one twice: this keeps the number of holders, and no draw is ever thrown away.

    Args:
        classes: int64 (k * clients,).
        clients: how many clients.
        generator: source of randomness.

    Returns:
        int64 (k, clients), the classes of each client.
    """
    held = classes.reshape(-1, clients)[:, generator.permutation(clients)]
    pairs = clients // 2
    for _ in range(SWAPS_PER_CLASS * len(held)):
        one, other = generator.permutation(clients)[: 2 * pairs].reshape(2, pairs)
        place, place_other = generator.integers(len(held), size=(2, pairs))
        ours, theirs = held[place, one], held[place_other, other]
        allowed = np.flatnonzero(~((held[:, one] == theirs) | (held[:, other] == ours)).any(axis=0))
        held[place[allowed], one[allowed]] = theirs[allowed]
        held[place_other[allowed], other[allowed]] = ours[allowed]
    return held
