from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.seeding import Purpose, generator, torch_seed

NUMBERS = st.integers(0, 2**40)


def first(*key: int) -> int:
    return int(generator(key[0], Purpose(key[1]), *key[2:]).bit_generator.random_raw())


def test_streams_differ_by_every_one_of_their_numbers() -> None:
    """Small numbers in every place, so that swapping two of them is among the cases."""
    keys = list(product(range(4), list(Purpose), range(4), range(4)))
    assert len({first(*key) for key in keys}) == len(keys)


@settings(deadline=None)
@given(NUMBERS, st.sampled_from(Purpose), NUMBERS, NUMBERS)
def test_the_same_numbers_give_the_same_stream(seed: int, purpose: Purpose, round: int, client: int) -> None:
    draws = [generator(seed, purpose, round, client).standard_normal(5) for _ in range(2)]
    assert np.array_equal(*draws)
    assert torch_seed(seed, purpose, round, client) == torch_seed(seed, purpose, round, client)


@settings(deadline=None)
@given(NUMBERS, st.sampled_from(Purpose), NUMBERS, NUMBERS)
def test_torch_takes_every_seed(seed: int, purpose: Purpose, round: int, client: int) -> None:
    value = torch_seed(seed, purpose, round, client)
    assert 0 <= value < 2**63
    assert torch.Generator().manual_seed(value).initial_seed() == value


def test_torchs_seeds_fill_their_range() -> None:
    seeds = [torch_seed(0, Purpose.DROPOUT, 1, client) for client in range(200)]
    assert len(set(seeds)) == 200
    assert max(seeds) > 0.9 * 2**63
    assert min(seeds) < 0.1 * 2**63


def test_streams_are_uncorrelated() -> None:
    rows = np.stack([generator(0, Purpose.COHORT, round).standard_normal(2000) for round in range(12)])
    apart = np.corrcoef(rows)[np.triu_indices(12, 1)]
    assert np.abs(apart).max() < 4.5 / np.sqrt(2000)


def test_the_numbers_of_the_purposes_never_change() -> None:
    """They are part of every result ever made."""
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "BACKBONE": 0,
        "ADAPTER": 1,
        "PARTITION": 2,
        "COHORT": 3,
        "BATCHES": 4,
        "AUGMENTATION": 5,
        "DROPOUT": 6,
        "ALTERATION": 7,
        "HELD_OUT": 8,
        "EVALUATED": 9,
        "PERSONAL": 10,
        "TIER": 11,
        "METHOD": 12,
        "NOISE": 13,
    }
    assert first(0, Purpose.COHORT, 1, 0) == 602_579_985_680_098_625
    assert torch_seed(7, Purpose.DROPOUT, 3, 11) == 7_896_195_277_422_622_743


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        generator(-1, Purpose.COHORT)
