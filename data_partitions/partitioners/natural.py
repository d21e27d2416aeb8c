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
        owners = number_users("Natural", labels, user)
        return Partition.from_owners(owners, len(np.bincount(owners)), {"partitioner": "Natural"})


def number_users(rule: str, labels: np.ndarray, user: np.ndarray | None) -> np.ndarray:
    """Numbers users from 0 by first appearance.

    Args:
        rule: the partitioner's name, for messages.
        labels: the label of each example (N,), only counted.
        user: who wrote each example (N,), any sortable dtype; None where nobody knows.

    Returns:
        int64 (N,), the number of each example's user.

    Raises:
        DataError: where there is not one user per example.
    """
    if user is None:
        raise DataError(f"{rule} was given data without users, expected a user per example: use Dirichlet or IID")
    if len(user) != len(labels):
        raise DataError(f"{rule} was given {len(user)} users for {len(labels)} examples: give one user per example")
    _, first, inverse = np.unique(user, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse.reshape(-1)]
