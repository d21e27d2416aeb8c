"""No skew: examples are dealt like cards."""

from __future__ import annotations

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.partition import Partition, Partitioner


class IID(Partitioner):
    """Deals shuffled examples in turn, so that sizes differ by at most one.

    With fewer examples than clients the last clients hold none.

    Source: McMahan et al. 2017, Section 3.

    Args:
        clients: how many clients, at least 1.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`. Neither labels' values nor users are looked at."""
        owners = np.empty(len(labels), dtype=np.int64)
        owners[generator.permutation(len(labels))] = np.arange(len(labels)) % self.clients
        return Partition.from_owners(owners, self.clients, {"partitioner": "IID", "clients": self.clients})
