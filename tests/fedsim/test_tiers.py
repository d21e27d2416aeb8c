from collections import Counter
from dataclasses import replace

import pytest
import torch

from fedsim.errors import ConfigurationError
from fedsim.parameters import Layout
from fedsim.tiers import Tiers, rank_slice, truncated
from tests import factored

SHAPES = {"one": (2, 4), "two": (3, 2)}


def layout(lora_rank: int = 3) -> Layout:
    return factored.server(SHAPES, lora_rank).layout


@pytest.mark.parametrize(
    ("count", "base", "lora_rank", "ranks"),
    [(3, None, 16, [1, 4, 16]), (5, None, 16, [1, 2, 4, 8, 16]), (3, 2, 16, [4, 8, 16]), (1, None, 16, [16]),
     (3, None, 8, [2, 4, 8]), (2, None, 7, [1, 7]), (3, None, 17, [1, 4, 17]), (3, 3, 10, [1, 3, 10])],
)  # fmt: skip
def test_ranks_by_tier(count: int, base: int | None, lora_rank: int, ranks: list[int]) -> None:
    """The paper's two settings at rank 16 first: 3 tiers of base 4, and 5 of base 2."""
    tiers = Tiers(count, base, lora_rank)
    assert tiers.ranks == ranks
    assert tiers.label == f"ranks {', '.join(map(str, ranks))}"


def test_tiers_are_uniform_and_of_the_seed_and_the_client_alone() -> None:
    """3,000 clients in 3 tiers: each tier within five standard deviations (26) of a third."""
    tiers = Tiers(3, None, 16)
    drawn = [tiers.rank_of(client, 7) for client in range(3000)]
    assert all(abs(number - 1000) < 130 for number in Counter(drawn).values())
    assert [tiers.rank_of(client, 7) for client in (2999, 5, 0)] == [drawn[2999], drawn[5], drawn[0]]
    assert [tiers.rank_of(client, 8) for client in range(3000)] != drawn
    assert {Tiers(1, None, 16).rank_of(client, 7) for client in range(9)} == {16}


@pytest.mark.parametrize(
    ("count", "base", "lora_rank", "says"),
    [
        (0, None, 16, "method.tiers is 0; expected 1 or more"),
        (2**31, None, 16, "method.tiers is 2147483648; expected at most 64"),
        (3, 1, 16, "method.tier_base is 1; expected 2 or more"),
        (3, 4, 15, "method.tiers 3 with method.tier_base 4 needs a LoRA rank of 16 at the server, got 15"),
        (4, None, 4, "needs a LoRA rank of 8 at the server, got 4; give --method.lora_rank 8, or fewer tiers"),
    ],
)
def test_tiers_above_the_servers_rank_are_refused(count: int, base: int | None, lora_rank: int, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Tiers(count, base, lora_rank)


@pytest.mark.parametrize("lacking", ["A", "B"])
def test_tiers_without_both_factors_are_refused(lacking: str) -> None:
    whole = layout()
    Tiers(2, None, 3).check(whole)
    rest = replace(whole, entries=tuple(e for e in whole.entries if e.segment != lacking))
    with pytest.raises(ConfigurationError, match=r"method\.tiers.*needs LoRA's two factors"):
        Tiers(2, None, 3).check(rest)


@pytest.mark.parametrize("lora_rank", [1, 2, 3])
def test_a_slice_is_the_first_rows_of_a_and_columns_of_b_and_the_head(lora_rank: int) -> None:
    places = layout()
    vector = torch.arange(1.0, places.length + 1)
    held = truncated(vector, places, lora_rank)
    before, after = places.views(vector), places.views(held)
    for pair in places.pairs:
        a, b = after[pair.a.name], after[pair.b.name]
        assert torch.equal(a[:lora_rank], before[pair.a.name][:lora_rank])
        assert torch.equal(b[:, :lora_rank], before[pair.b.name][:, :lora_rank])
        assert not a[lora_rank:].any()
        assert not b[:, lora_rank:].any()
    assert torch.equal(held[places.where(["head"])], vector[places.where(["head"])])
    chosen = rank_slice(places, lora_rank)
    assert chosen.tolist() == held.nonzero().squeeze(1).tolist()
    assert len(chosen) == lora_rank * (2 + 4 + 3 + 2) + 2  # the factors' sides, and a head of two
