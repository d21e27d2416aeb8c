"""Label skew by shards: data sorted by label, cut, and dealt in pieces."""

from __future__ import annotations

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.partition import Partition, Partitioner


class Shards(Partitioner):
    """Sorts by label, cuts into equal shards and deals those at random.

    Shards differ in size by at most one, so a client's size is nearly the mean. A shard may hold several labels where
    one ends and the next begins. With fewer examples than shards some are empty, and so may be clients.

    Source: McMahan et al. 2017, Section 3, the pathological non-IID MNIST.

    Args:
        clients: how many clients, at least 1.
        shards_per_client: how many shards each is dealt, at least 1; the paper's is 2.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100, shards_per_client: int = 2) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)
        self.shards_per_client = require_whole("partition.shards_per_client", shards_per_client, 1, 2)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`. Users are not looked at."""
        shards = self.clients * self.shards_per_client
        holders = generator.permutation(shards) % self.clients
        owners = np.empty(len(labels), dtype=np.int64)
        owners[np.argsort(labels, kind="stable")] = holders[np.arange(len(labels)) * shards // max(len(labels), 1)]
        arguments = {"clients": self.clients, "shards_per_client": self.shards_per_client}
        return Partition.from_owners(owners, self.clients, {"partitioner": "Shards", **arguments})
