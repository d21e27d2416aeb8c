"""A part of every client's examples kept from training, so that each client can be evaluated on examples of its own."""

from __future__ import annotations

import numpy as np

from data_partitions.partition import Partition
from data_partitions.partitioners.dealing import random_ranks


def hold_out(partition: Partition, fraction: float, generator: np.random.Generator) -> tuple[Partition, Partition]:
    """Cuts every client's examples in two, at random.

    A client of n examples keeps fraction * n of them from training, rounded down, but at least one where it has two or
    more; one always stays for training. So a client of one example has none held out.

    Args:
        partition: of all examples.
        fraction: what is held out, in (0, 1).
        generator: the only source of randomness.

    Returns:
        What is trained on and what is held out, over the same clients; together they are the partition.
    """
    sizes = partition.sizes
    owners = np.repeat(np.arange(partition.clients), sizes)
    held = np.minimum(np.maximum(np.floor(sizes * fraction), 1), sizes - 1).clip(min=0).astype(np.int64)
    kept_out = random_ranks(owners, partition.clients, generator) < held[owners]
    return _part(partition, ~kept_out, sizes - held, fraction), _part(partition, kept_out, held, fraction)


def _part(partition: Partition, chosen: np.ndarray, sizes: np.ndarray, fraction: float) -> Partition:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Partition(offsets, partition.indices[chosen], {**partition.arguments, "held_out": fraction})
