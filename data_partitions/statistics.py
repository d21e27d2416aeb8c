"""How a partition deals labels and users: what each client holds, and how far that is from the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_partitions.partition import Partition


@dataclass(frozen=True, eq=False)
class LabelSkew:
    """The labels of every client that holds something, and of all clients together.

    M clients hold at least one example; arrays of length M follow their order in the partition.

    Attributes:
        values: the labels that are dealt, rising (L,).
        totals: how many examples have each of them, int64 (L,).
        examples: how many examples each client holds, int64 (M,).
        labels: how many labels each client holds, int64 (M,).
        entropy: of a client's labels, in bits, float64 (M,).
        distance: total variation between a client's shares of labels and the whole's, in [0, 1], float64 (M,): the
            fraction of its examples that would have to change their label.
        largest_share: the share of a client's most frequent label, in (0, 1], float64 (M,).
    """

    values: np.ndarray
    totals: np.ndarray
    examples: np.ndarray
    labels: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    largest_share: np.ndarray

    @property
    def whole_entropy(self) -> float:
        """The entropy of the labels of all clients together, in bits."""
        shares = self.totals / max(1, self.totals.sum())
        return float(-(shares * np.log2(shares)).sum()) + 0.0

    @property
    def whole_largest_share(self) -> float:
        """The share of the most frequent label among the examples of all clients; 0 where there are none."""
        return float(self.totals.max(initial=0) / max(1, self.totals.sum()))


def label_skew(partition: Partition, labels: np.ndarray) -> LabelSkew:
    """Measures how the labels are dealt.

    Counts are kept per pair of client and label that occurs, so a million clients and a thousand labels need no table
    of both.

    Args:
        partition: which client holds which rows.
        labels: integers (N,), the label of each training example.

    Returns:
        The labels of the clients that hold something; the whole is what all of them hold together.
    """
    values, codes = _codes(labels[partition.indices])
    totals = np.bincount(codes, minlength=len(values))
    sizes = partition.sizes
    examples = sizes[sizes > 0]
    keys = np.repeat(np.arange(len(examples)), examples) * max(1, len(values)) + codes
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(first, append=len(keys))
    holders, held = np.divmod(keys[first], max(1, len(values)))
    shares = counts / examples[holders]
    # Both distributions sum to 1, so what a client has too much of is half of all differences.
    too_much = np.maximum(shares - totals[held] / max(1, len(codes)), 0)
    clients = len(examples)
    starts = np.flatnonzero(np.diff(holders, prepend=-1))
    return LabelSkew(
        values=values,
        totals=totals,
        examples=examples,
        labels=np.bincount(holders, minlength=clients),
        entropy=np.bincount(holders, weights=-shares * np.log2(shares), minlength=clients) + 0.0,
        distance=np.bincount(holders, weights=too_much, minlength=clients),
        largest_share=np.maximum.reduceat(shares, starts) if clients else np.zeros(0),
    )


def users_per_client(partition: Partition, user: np.ndarray) -> tuple[np.ndarray, int]:
    """Counts whose examples a client holds.

    Args:
        partition: which client holds which rows.
        user: who wrote each training example (N,), any sortable dtype.

    Returns:
        How many users each client that holds something has, int64 (M,), and how many users there are in all.
    """
    sizes = partition.sizes
    examples = sizes[sizes > 0]
    clients = np.repeat(np.arange(len(examples)), examples)
    written = user[partition.indices]
    # Where every client is one user there are as many beginnings as clients, and names are compared, not sorted.
    begins = np.ones(len(written), dtype=bool)
    begins[1:] = (clients[1:] != clients[:-1]) | (written[1:] != written[:-1])
    names, codes = _codes(written[begins])
    pairs = clients[begins] * max(1, len(names)) + codes
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return np.bincount(pairs // max(1, len(names)), minlength=len(examples)), len(names)


def _codes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, rising, and which of them each example has, int64 (N,); small integers are not sorted."""
    if labels.dtype.kind in "iu" and len(labels) and labels.min() >= 0 and labels.max() <= len(labels):
        values = np.flatnonzero(np.bincount(labels))
        place = np.zeros(int(labels.max()) + 1, dtype=np.int64)
        place[values] = np.arange(len(values))
        return values, place[labels]
    values, codes = np.unique(labels, return_inverse=True)
    return values, codes.reshape(-1)
