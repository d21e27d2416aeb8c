"""Label skew the other way round: each label's spread over the clients is a Dirichlet draw."""

from __future__ import annotations

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.dealing import (
    dirichlet_shares,
    random_ranks,
    require_alpha,
    require_enough,
    rows_by_label,
    whole_parts,
)


class LabelDirichlet(Partitioner):
    """Deals each label over the clients by a Dirichlet draw of its own.

    Not the rule of `Dirichlet`, which draws for every client a mix of labels and then normalises each label over the
    clients. Here labels are drawn independently of each other, so that a client may draw much or little of all of them:
    sizes differ far more, and with a small alpha most clients would hold nothing without `min_examples`.

    A client that the draw leaves short takes random examples that others hold beyond the minimum. The published code of
    Li et al. redraws until everybody has 10, and gives no more to who has the mean size; neither is done here.

    Source: Yurochkin et al. 2019; Li et al. 2022, "Federated Learning on Non-IID Data Silos", p_k ~ Dir.

    Args:
        clients: how many clients, at least 1.
        alpha: concentration, above 0; towards 0 a label lies with one client, towards infinity with all alike.
        min_examples: what every client holds at least, 0 or more.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100, alpha: float = 0.5, min_examples: int = 1) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)
        self.alpha = require_alpha(alpha)
        self.min_examples = require_whole("partition.min_examples", min_examples, 0, 1)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`. Users are not looked at.

        Raises:
            DataError: where there are too few examples for the minimum.
        """
        require_enough(len(labels), self.clients, self.min_examples)
        owners = np.empty(len(labels), dtype=np.int64)
        for rows in rows_by_label(labels):
            counts = whole_parts(dirichlet_shares(self.alpha, self.clients, generator), len(rows))
            owners[generator.permutation(rows)] = np.repeat(np.arange(self.clients), counts)
        self._top_up(owners, generator)
        arguments = {"clients": self.clients, "alpha": self.alpha, "min_examples": self.min_examples}
        return Partition.from_owners(owners, self.clients, {"partitioner": "LabelDirichlet", **arguments})

    def _top_up(self, owners: np.ndarray, generator: np.random.Generator) -> None:
        """Moves examples, in place, from clients above the minimum to those below."""
        short = np.maximum(self.min_examples - np.bincount(owners, minlength=self.clients), 0)
        if short.any():
            spare = np.flatnonzero(random_ranks(owners, self.clients, generator) >= self.min_examples)
            owners[generator.permutation(spare)[: short.sum()]] = np.repeat(np.arange(self.clients), short)
