"""Users dealt whole to fewer clients, as where a client is a site that many users share."""

from __future__ import annotations

import heapq

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.errors import DataError
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.natural import number_users


class GroupedNatural(Partitioner):
    """Deals whole users to fewer clients, the largest user first to the smallest client.

    Sizes come out about as even as whole users allow: the largest client is at most 4/3 of the best that any dealing
    could reach. Users of equal size are dealt in random order, and nothing else is random.

    Source: Caldas et al. 2018, LEAF, for users as clients; Graham 1969 for the largest first.

    Args:
        clients: how many clients, at least 1 and at most the number of users.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Gives each client all examples of its users; see `Partitioner.split`.

        Raises:
            DataError: where the data set names no users, or fewer than clients.
        """
        users = number_users("GroupedNatural", labels, user)
        sizes = np.bincount(users)
        if len(sizes) < self.clients:
            raise DataError(
                f"partition.clients is {self.clients}, expected at most {len(sizes)}, the number of users: lower it"
            )
        order = generator.permutation(len(sizes))
        order = order[np.argsort(-sizes[order], kind="stable")]
        groups = np.empty(len(sizes), dtype=np.int64)
        groups[order] = _deal_largest_first(sizes[order].tolist(), self.clients)
        arguments = {"partitioner": "GroupedNatural", "clients": self.clients}
        return Partition.from_owners(groups[users], self.clients, arguments)


def _deal_largest_first(sizes: list[int], clients: int) -> list[int]:
    """The client of each user, given sizes that never rise: whoever holds least, the lower number on a tie."""
    # Where a user goes depends on all before: a loop over users, 1 to 2 seconds for a million.
    held = [(0, client) for client in range(clients)]
    dealt = []
    for size in sizes:
        least, client = held[0]
        heapq.heapreplace(held, (least + size, client))
        dealt.append(client)
    return dealt
