"""What clients are told of weights that changed: what they lack, in the fewest values, kept no longer than needed."""

import pytest
import torch
from torch import Tensor

from fedsim.merging import first_lacking, forget, merge, news
from fedsim.state import ClientState, ServerState
from tests import factored

SHAPES = {"one": (10, 12), "two": (3, 2)}
WHOLE = 10 * 12 + 3 * 2


def server() -> ServerState:
    return factored.server(SHAPES, lora_rank=1, dtype=torch.float32)


def merge_round(state: ServerState, round: int, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(round)
    made = {}
    for layer, (d_out, d_in) in SHAPES.items():
        made[layer] = torch.randn(d_out, rank, generator=random), torch.randn(rank, d_in, generator=random)
        merge(state, round, layer, *made[layer], scale=0.5)
    forget(state)
    return made


def took_part(state: ServerState, **rounds: int) -> dict[str, int]:
    """What clients lack that took part in these rounds, by name; 0 for never."""
    found = {}
    for at, (name, round) in enumerate(rounds.items()):
        if round:
            state.clients[at] = ClientState(round)
        found[name] = first_lacking(state, at)
    return found


def test_each_module_goes_as_factors_or_as_their_product() -> None:
    """Of rank 2: 2 (10 + 12) values against 120, and 2 (3 + 2) against 6."""
    state = server()
    made = merge_round(state, 1, 2)
    (part,) = news(state, 1)
    assert part.indices is None
    assert part.count == 2 * 22 + 6
    left, right = made["one"]
    expected = torch.cat([left.flatten(), right.flatten(), torch.matmul(*made["two"]).flatten()])
    torch.testing.assert_close(part.values, expected)


@pytest.mark.parametrize("layer", SHAPES)
def test_the_weight_takes_on_what_travels(layer: str) -> None:
    state, before = server(), server().backbone.weight(layer).clone()
    left, right = merge_round(state, 1, 2)[layer]
    torch.testing.assert_close(state.backbone.weight(layer) - before, 0.5 * left @ right, rtol=0, atol=1e-6)


def test_a_client_is_sent_the_rounds_that_it_lacks() -> None:
    """It downloads before its own round's products are made, so it lacks that round's too."""
    state = server()
    assert took_part(state, never=0, before=1) == {"never": 1, "before": 1}
    assert news(state, 1) == ()
    counts = [22 + 5, 22 + 5, 22 + 5]
    for round in (1, 2, 3):
        merge_round(state, round, 1)
    assert took_part(state, never=0, first=1, second=2, third=3) == {"never": 1, "first": 1, "second": 2, "third": 3}
    for since in (1, 2, 3):
        assert [part.count for part in news(state, since)] == counts[since - 1 :]


def test_a_round_without_products_costs_nothing() -> None:
    state = server()
    merge_round(state, 1, 1)
    merge_round(state, 4, 1)
    assert len(news(state, 1)) == 2
    assert [part.count for part in news(state, 3)] == [27]


def test_who_lacks_as_much_as_all_is_sent_the_changed_weights_and_products_are_dropped() -> None:
    """Of rank 1 a round is 27 values, and the changed weights are 126: four rounds are kept."""
    state = server()
    for round in range(1, 10):
        merge_round(state, round, 1)
        kept = sum(t.numel() for name, t in state.tensors.items() if name.startswith("merged."))
        assert kept == 27 * min(round, 4) < WHOLE
    lacks = took_part(state, never=0, fifth=5, sixth=6, ninth=9)
    assert lacks == {"never": 0, "fifth": 0, "sixth": 6, "ninth": 9}
    (whole,) = news(state, 0)
    assert whole.count == WHOLE
    torch.testing.assert_close(
        whole.values, torch.cat([state.backbone.weight(layer).flatten() for layer in SHAPES]), rtol=0, atol=0
    )
    assert len(news(state, 6)) == 4


def test_a_round_that_is_as_long_as_the_weights_is_never_kept() -> None:
    state = server()
    merge_round(state, 1, 50)
    assert took_part(state, never=0, first=1) == {"never": 0, "first": 0}
    assert not [name for name in state.tensors if name.startswith("merged.")]
    merge_round(state, 2, 1)
    assert took_part(state, first=1, second=2) == {"first": 0, "second": 2}


def test_factors_of_rank_zero_change_nothing() -> None:
    state = server()
    merged = merge(state, 1, "one", torch.zeros(10, 0), torch.zeros(0, 12), 1.0)
    assert merged.shape == (10, 12)
    assert not merged.any()
    assert state.backbone.changed == {}
    assert state.tensors == {}
