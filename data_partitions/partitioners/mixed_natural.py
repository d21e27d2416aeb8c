"""Between natural and IID: users as clients, a part of everyone's examples mixed."""

from __future__ import annotations

import numpy as np

from data_partitions.errors import DataError
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.dealing import random_ranks
from data_partitions.partitioners.natural import number_users


class MixedNatural(Partitioner):
    """One client per user, with a fraction of everyone's examples pooled and dealt back at random.

    Sizes stay the users' own: 0 is `Natural`, 1 is IID in natural sizes. A user gives a fraction of their examples that
    is right to one example, and over all users right to one as well. The published code pools each user's last
    examples, deals the pool back in equal parts, which evens sizes out, and drops what remains; here nothing is lost.

    Source: FLASC's published code (imkevinkuo/flasc, partition_iidmix), which mixes Reddit so.

    Args:
        iid_fraction: what is pooled, 0 to 1.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, iid_fraction: float = 0.5) -> None:
        given = iid_fraction
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
            raise DataError(f"partition.iid_fraction is {given!r}, expected a number from 0 to 1: give e.g. 0.5")
        self.iid_fraction = float(given)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`.

        Raises:
            DataError: where the data set names no users.
        """
        owners = number_users("MixedNatural", labels, user)
        sizes = np.bincount(owners)
        # Rounding the running total keeps the whole fraction right where most users have a few examples only.
        ends = np.floor(np.cumsum(sizes) * self.iid_fraction + 0.5).astype(np.int64)
        pooled = np.flatnonzero(random_ranks(owners, len(sizes), generator) < np.diff(ends, prepend=0)[owners])
        owners[pooled] = generator.permutation(owners[pooled])
        arguments = {"partitioner": "MixedNatural", "iid_fraction": self.iid_fraction}
        return Partition.from_owners(owners, len(sizes), arguments)
