"""Every random choice comes from (seed, purpose, round, client): none depends on another, or on the workers."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for. The values are part of every result: never renumber."""

    BACKBONE = 0
    ADAPTER = 1
    PARTITION = 2
    COHORT = 3
    BATCHES = 4
    AUGMENTATION = 5
    DROPOUT = 6
    ALTERATION = 7
    HELD_OUT = 8
    EVALUATED = 9
    PERSONAL = 10
    TIER = 11
    METHOD = 12
    NOISE = 13


def generator(seed: int, purpose: Purpose, round: int = 0, client: int = 0) -> np.random.Generator:
    """Returns a fresh generator of one purpose, round and client.

    Args:
        seed: the run's seed, 0 or more.
        purpose: what it is for.
        round: the round, 0 for what happens before the first.
        client: the client, 0 for what belongs to the server.

    Returns:
        A PCG64 generator, the same for the same four numbers and independent for any others.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, int(purpose), round, client]))


def torch_seed(seed: int, purpose: Purpose, round: int = 0, client: int = 0) -> int:
    """Returns a seed for torch's global generator, in [0, 2^63), made from the same four numbers."""
    return int(generator(seed, purpose, round, client).integers(2**63))
