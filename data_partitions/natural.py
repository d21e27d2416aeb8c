"""The split that the data came with: one client per user."""

from __future__ import annotations

import numpy as np

from data_partitions.errors import DataError
from data_partitions.partition import Partition, Partitioner


class Natural(Partitioner):
    """One client per user, numbered by first appearance; no client is empty and nothing is random.

    Source: Caldas et al. 2018, LEAF.
    """

    def __init__(self) -> None:
        pass

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Gives each user their own examples; see `Partitioner.split`.

        Raises:
            DataError: where the data set names no users.
        """
        if user is None:
            raise DataError("Natural was given data without users, expected a user per example: use Dirichlet or IID")
        if len(user) != len(labels):
            raise DataError(
                f"Natural was given {len(user)} users for {len(labels)} examples: give one user per example"
            )
        _, first, inverse = np.unique(user, return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        return Partition.from_owners(order[inverse.reshape(-1)], len(first), {"partitioner": "Natural"})
