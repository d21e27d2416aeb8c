"""Size skew: some clients hold much, others little, of the same mix of labels."""

from __future__ import annotations

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.dealing import (
    dirichlet_shares,
    require_alpha,
    require_enough,
    whole_parts,
)


class QuantitySkew(Partitioner):
    """Deals shuffled examples in sizes that are a Dirichlet draw.

    Everybody is given `min_examples` first, and the draw deals what is left; the published code redraws until everybody
    has 10 instead.

    Source: Li et al. 2022, "Federated Learning on Non-IID Data Silos", quantity skew, q ~ Dir.

    Args:
        clients: how many clients, at least 1.
        alpha: concentration, above 0; towards 0 one client holds nearly all, towards infinity all the same.
        min_examples: what every client holds at least, 0 or more.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100, alpha: float = 0.5, min_examples: int = 1) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)
        self.alpha = require_alpha(alpha)
        self.min_examples = require_whole("partition.min_examples", min_examples, 0, 1)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`. Neither labels' values nor users are looked at.

        Raises:
            DataError: where there are too few examples for the minimum.
        """
        require_enough(len(labels), self.clients, self.min_examples)
        shares = dirichlet_shares(self.alpha, self.clients, generator)
        sizes = self.min_examples + whole_parts(shares, len(labels) - self.clients * self.min_examples)
        owners = np.empty(len(labels), dtype=np.int64)
        owners[generator.permutation(len(labels))] = np.repeat(np.arange(self.clients), sizes)
        arguments = {"clients": self.clients, "alpha": self.alpha, "min_examples": self.min_examples}
        return Partition.from_owners(owners, self.clients, {"partitioner": "QuantitySkew", **arguments})
