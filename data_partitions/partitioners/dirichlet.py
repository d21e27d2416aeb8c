"""Label skew: each client's mix of labels is a Dirichlet draw.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
in the form that FLASC (Kuo et al.) uses: every example is dealt exactly once.
"""

from __future__ import annotations

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.dealing import log_gammas, require_alpha, rows_by_label, whole_parts


class Dirichlet(Partitioner):
    """Deals each label's examples by the share that each client's Dirichlet draw gives to that label.

    Each client draws a mix of labels; what clients drew of a label is then normalised over the clients. Sizes differ
    somewhat, and with a small alpha or many clients some hold nothing. `LabelDirichlet` draws each label's spread over
    the clients instead, without looking at the other labels, and its sizes differ far more.

    Source: Hsu et al. 2019, drawn per client as in FLASC's published code.

    Args:
        clients: how many clients, at least 1.
        alpha: concentration, above 0; towards 0 a client has one label, towards infinity all alike.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100, alpha: float = 0.5) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)
        self.alpha = require_alpha(alpha)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`. Users are not looked at."""
        by_label = rows_by_label(labels)
        shares = _label_shares(self.clients, len(by_label), self.alpha, generator)
        owners = np.empty(len(labels), dtype=np.int64)
        for column, rows in enumerate(by_label):
            counts = whole_parts(shares[:, column], len(rows))
            owners[generator.permutation(rows)] = np.repeat(np.arange(self.clients), counts)
        arguments = {"partitioner": "Dirichlet", "clients": self.clients, "alpha": self.alpha}
        return Partition.from_owners(owners, self.clients, arguments)


def _label_shares(clients: int, labels: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """Draws each client's proportions and normalises each label over the clients.

    In logarithms throughout: at alpha 0.01 most proportions are below the smallest float, and a label whose every
    proportion became 0 could not be normalised.

    Returns:
        float64 (clients, labels), each column summing to 1.
    """
    drawn = log_gammas(alpha, (clients, labels), generator)  # changed in place: it may be large
    drawn -= np.logaddexp.reduce(drawn, axis=1, keepdims=True)
    drawn -= np.logaddexp.reduce(drawn, axis=0, keepdims=True)
    return np.exp(drawn, out=drawn)
