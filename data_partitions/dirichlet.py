"""Label skew: each client's mix of labels is a Dirichlet draw.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
in the form that FLASC (Kuo et al.) uses: every example is dealt exactly once.
"""

from __future__ import annotations

import math

import numpy as np

from data_partitions.errors import DataError
from data_partitions.partition import Partition, Partitioner, require_clients


class Dirichlet(Partitioner):
    """Deals each label's examples by the share that each client's Dirichlet draw gives to that label.

    Numbers of examples differ between clients, and with a small alpha or many clients some hold none.

    Source: Hsu et al. 2019, drawn per client as in FLASC's published code.

    Args:
        clients: how many clients, at least 1.
        alpha: concentration, above 0; towards 0 a client has one label, towards infinity all alike.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(self, clients: int = 100, alpha: float = 0.5) -> None:
        self.clients = require_clients(clients)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not (math.isfinite(alpha) and alpha > 0):
            raise DataError(f"partition.alpha is {alpha!r}, expected a finite number above 0: give e.g. 0.5")
        self.alpha = float(alpha)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once; see `Partitioner.split`. Users are not looked at."""
        present = np.unique(labels)
        shares = _label_shares(self.clients, len(present), self.alpha, generator)
        owners = np.empty(len(labels), dtype=np.int64)
        for column, label in enumerate(present):
            rows = generator.permutation(np.flatnonzero(labels == label))
            # Rounding the running total, not each share, deals every example exactly once.
            ends = np.rint(np.cumsum(shares[:, column]) * len(rows)).astype(np.int64)
            ends[-1] = len(rows)
            counts = np.diff(np.minimum(ends, len(rows)), prepend=0)
            owners[rows] = np.repeat(np.arange(self.clients), counts)
        arguments = {"partitioner": "Dirichlet", "clients": self.clients, "alpha": self.alpha}
        return Partition.from_owners(owners, self.clients, arguments)


def _label_shares(clients: int, labels: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """Draws each client's proportions and normalises each label over the clients.

    In logarithms throughout: at alpha 0.01 most proportions are below the smallest float, and a label whose every
    proportion became 0 could not be normalised.

    Returns:
        float64 (clients, labels), each column summing to 1.
    """
    # A gamma(alpha) variate is gamma(alpha + 1) * U^(1/alpha), and -log U is a standard exponential.
    log_gamma = np.log(generator.standard_gamma(alpha + 1, (clients, labels)))
    log_gamma -= generator.standard_exponential((clients, labels)) / max(alpha, 1e-300)
    log_proportions = log_gamma - np.logaddexp.reduce(log_gamma, axis=1, keepdims=True)
    return np.exp(log_proportions - np.logaddexp.reduce(log_proportions, axis=0, keepdims=True))
