"""Who takes part in a run, and how they train: what a method may change before it starts."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim.options import ClientOptions, RunOptions


class Partition(Protocol):
    """Which client holds which rows of the training set."""

    @property
    def clients(self) -> int:
        """How many clients there are."""

    def of(self, client: int) -> np.ndarray:
        """Returns the client's rows, (n,) int64; maybe none."""

    def examples(self, client: int) -> int:
        """Returns how many rows the client has."""


@dataclass(frozen=True)
class Arrangement:
    """Who takes part, and how they train.

    Attributes:
        population: the clients that are sampled.
        client: their local work.
        run: how many of them a round, and how many rounds.
        notes: what the user should know of it, a line each; printed when a run starts.
    """

    population: Partition
    client: ClientOptions
    run: RunOptions
    notes: tuple[str, ...] = ()


class Pooled:
    """One client that holds the rows of all: a `Partition`.

    Args:
        partition: whose clients are pooled.
    """

    def __init__(self, partition: Partition) -> None:
        # In rising order, as a partition into one client has them.
        self._rows = np.sort(np.concatenate([partition.of(client) for client in range(partition.clients)]))

    @property
    def clients(self) -> int:
        """One."""
        return 1

    def of(self, client: int) -> np.ndarray:
        """Returns all rows, (n,) int64."""
        return self._rows

    def examples(self, client: int) -> int:
        """Returns how many rows there are."""
        return len(self._rows)
