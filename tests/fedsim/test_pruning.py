from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim import pruning
from fedsim.codec import HEADER_BYTES, encode
from fedsim.method import ClientState, ServerState
from fedsim.parameters import Layout, Place
from fedsim.sparse import IndexSet
from tests import tiny
from tests.pruned import P, lora_layout


def server(values: list[float] | None = None, **options: object) -> ServerState:
    return tiny.server_state(values or P, lora_layout(), **options)


def kept(state: ServerState) -> list[int]:
    return pruning.known_mask(state)["kept"].tolist()


def test_segments_keep_their_own_share_and_a_global_mask_none_of_b() -> None:
    """A half of each of A, B and the head; a half of all twelve: A whole, and two of the head."""
    vector, layout = torch.tensor(P), lora_layout()
    assert pruning.largest(vector, 0.5, layout, "segment").tolist() == [0, 1, 4, 7, 9, 10]
    assert pruning.largest(vector, 0.5, layout, "global").tolist() == [0, 1, 2, 3, 9, 10]


def test_every_segment_keeps_an_entry_and_a_global_mask_one_in_all() -> None:
    vector, layout = torch.tensor(P), lora_layout()
    assert pruning.largest(vector, 0.01, layout, "segment").tolist() == [0, 7, 9]
    assert pruning.largest(vector, 0.01, layout, "global").tolist() == [0]


def test_segments_are_taken_over_all_modules_together() -> None:
    """The A of a module whose entries are small keeps none where another's are larger."""
    places = tuple(Place(f"{m}.lora_A", torch.Size([2]), 2 * at, "A", m) for at, m in enumerate("mn"))
    vector = torch.tensor([0.1, 0.2, 3.0, 4.0])
    assert pruning.largest(vector, 0.5, Layout(places), "segment").tolist() == [2, 3]


@pytest.mark.parametrize("scope", ["segment", "global"])
def test_a_kept_zero_wins_over_a_pruned_one(scope: pruning.MaskScope) -> None:
    """Both are zero, and the lowest index would decide; k still counts the pruned entries (Algorithm 5, line 10)."""
    vector, layout = torch.zeros(4), tiny.layout_of(4)
    alive = torch.tensor([False, False, True, True])
    assert pruning.largest(vector, 0.5, layout, scope).tolist() == [0, 1]
    assert pruning.largest(vector, 0.5, layout, scope, alive).tolist() == [2, 3]
    assert pruning.largest(vector, 0.25, layout, scope, alive).tolist() == [2]
    assert pruning.largest(vector, 0.75, layout, scope, alive).tolist() == [2, 3]  # there are no more


def test_pruning_takes_an_entry_out_of_p_and_of_the_moments_for_good() -> None:
    state = server(lr=0.1)
    state.vector.grad = torch.ones(12, dtype=torch.float64)
    state.optimizer.step()
    pruning.prune(state, torch.tensor([0, 1, 4, 9]), 3)
    assert kept(state) == [0, 1, 4, 9]
    places = [2, 3, 5, 6, 7, 8, 10, 11]
    moments = state.optimizer.state[state.vector]
    for held in (state.vector, moments["exp_avg"], moments["exp_avg_sq"]):
        assert not held[places].any()
        assert held[[0, 1, 4, 9]].all()
    pruning.prune(state, torch.tensor([0, 2, 4, 9]), 5)  # 2 does not come back
    assert kept(state) == [0, 4, 9]
    assert state.tensors[pruning.PRUNED].tolist() == [0, 5, 3, 3, 0, 3, 3, 3, 3, 0, 3, 3]


def test_zero_pruned_undoes_what_a_step_did_to_pruned_entries() -> None:
    """As noise on every entry would."""
    state = server(optimizer="sgd", lr=1.0, momentum=0.9)
    pruning.zero_pruned(state)  # nothing is pruned yet
    assert state.vector.all()
    pruning.prune(state, torch.tensor([0, 4, 9]), 1)
    state.vector.grad = torch.ones(12, dtype=torch.float64)
    state.optimizer.step()
    assert state.vector.all()
    pruning.zero_pruned(state)
    assert state.vector.nonzero().squeeze(1).tolist() == [0, 4, 9]
    assert state.optimizer.state[state.vector]["momentum_buffer"].nonzero().squeeze(1).tolist() == [0, 4, 9]


def test_the_iterative_density_is_that_of_repeated_multiplication() -> None:
    """To the bit, as it decides how many entries are kept: d = 1 at the first pruning, then d (1 - p)."""
    for fraction, every in ((0.02, 1), (0.3, 7)):
        density = 1.0
        for round in range(every, 60 * every, every):
            assert pruning.iterative_density(round, fraction, every) == density
            density = density * (1 - fraction)


def test_the_note_on_a_dead_adapter_comes_once_a_run() -> None:
    state = server()
    pruning.note_dead_adapter(state, torch.tensor([0, 5]))
    assert state.notes == []
    pruning.note_dead_adapter(state, torch.tensor([0, 9, 10]))
    assert state.notes == [
        "the mask keeps no entry of any B and 2 of the head's 4: the adapter stays zero; "
        "give --method.mask_scope segment"
    ]
    resumed = replace(server(), tensors={name: value.clone() for name, value in state.tensors.items()})
    for again in (state, resumed):
        again.notes = []
        pruning.note_dead_adapter(again, torch.tensor([0, 9, 10]))
        assert again.notes == []


def test_a_backbone_has_no_adapter_that_could_die() -> None:
    state = tiny.server_state([1.0, 2.0])
    pruning.note_dead_adapter(state, torch.tensor([0]))
    assert state.notes == []


def heard(news: tuple[IndexSet, ...], held: Tensor, values: int) -> Tensor:
    """The mask that a client is left with, which knows nothing but what it held and how many values came.

    Args:
        news: what it was told.
        held: int64, the entries that it kept before; all of P for a newcomer.
        values: how many values came.
    """
    if not news:
        return held
    (told,) = news
    assert told.length == len(held)
    is_told = torch.zeros(len(held), dtype=torch.bool)
    is_told[told.indices] = True
    return held[is_told] if len(told.indices) == values else held[~is_told]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.integers(8, 60))
def test_every_client_can_tell_the_mask_from_what_it_is_told(densities: list[float], length: int) -> None:
    """Whenever it last took part, for at most a bit for each entry that it holds."""
    random = torch.Generator().manual_seed(length)
    state = tiny.server_state(torch.randn(length, generator=random).tolist())
    masks = {0: torch.arange(length)}
    for at, density in enumerate(sorted(densities, reverse=True), start=1):
        pruning.prune_smallest(state, density, "segment", 2 * at)
        masks[2 * at] = masks[2 * at + 1] = pruning.known_mask(state).get("kept", torch.arange(length))
        masks.setdefault(2 * at - 1, masks[2 * at - 2])
    now = masks[max(masks)]
    for last, mask in masks.items():
        state.clients[0] = ClientState(last)
        since = pruning.mask_round(state, 0)
        assert torch.equal(masks[since], mask)  # the number names the mask that it holds
        news = pruning.mask_news(state, since)
        assert torch.equal(heard(news, mask, len(now)), now)
        assert bool(news) == (len(mask) != len(now))
        assert all(len(encode(part)) <= HEADER_BYTES + (len(mask) + 7) // 8 for part in news)


def test_clients_of_equal_knowledge_get_equal_numbers() -> None:
    """Pruned at the start of rounds 4 and 7: who took part before 4, or never, holds all of P."""
    state = tiny.server_state([5.0, 4.0, 3.0, 2.0, 1.0])
    assert pruning.mask_round(state, 0) == 0
    for round, count in ((4, 3), (7, 2)):
        pruning.prune(state, torch.arange(count), round)
    state.clients = {client: ClientState(client) for client in (1, 3, 4, 6, 7, 9)}
    assert [pruning.mask_round(state, client) for client in (0, 1, 3, 4, 6, 7, 9)] == [0, 0, 0, 4, 4, 7, 7]


def test_news_are_of_what_is_kept_or_of_what_is_gone() -> None:
    """Of five, three stay: the two that go are told; of the three, one stays: it is told. A newcomer hears of one."""
    state = tiny.server_state([5.0, 4.0, 3.0, 2.0, 1.0])
    assert pruning.mask_news(state, 0) == ()
    pruning.prune(state, torch.tensor([0, 2, 4]), 4)

    def told(since: int) -> list[tuple[int, list[int]]]:
        return [(part.length, part.indices.tolist()) for part in pruning.mask_news(state, since)]

    assert told(0) == [(5, [1, 3])]
    assert told(4) == []
    pruning.prune(state, torch.tensor([4]), 7)
    assert told(0) == [(5, [4])]
    assert told(4) == [(3, [2])]
    assert told(7) == []


def test_a_prune_that_takes_nothing_is_no_news() -> None:
    state = tiny.server_state([1.0, 2.0])
    pruning.prune_smallest(state, 1.0, "segment", 1)
    assert pruning.known_mask(state) == {}
    pruning.prune(state, torch.tensor([0, 1]), 2)
    assert (kept(state), pruning.mask_news(state, 0), pruning.mask_round(state, 0)) == ([0, 1], (), 0)


def test_the_mask_that_is_taken_once_waits_for_p_to_move() -> None:
    """A round in which nothing arrived is no dense round: B would still be zero."""
    state = server()
    choices = []

    def first(state: ServerState) -> Tensor:
        choices.append(1)
        return torch.tensor([0, 4, 9])

    for round in (1, 2):
        pruning.prune_once(state, first, "tuned", round)
    assert not choices
    assert torch.equal(pruning.with_mask_taken(state, first, "tuned"), state.vector)
    state.vector.data[0] = 20
    ahead = {origin: pruning.with_mask_taken(state, first, origin).tolist() for origin in ("tuned", "initial")}
    assert ahead == {
        "tuned": [20, 0, 0, 0, 0.3, 0, 0, 0, 0, -3.0, 0, 0],
        "initial": [9, 0, 0, 0, 0.3, 0, 0, 0, 0, -3.0, 0, 0],
    }
    assert not pruning.known_mask(state)  # looking ahead changes nothing
    for round in (3, 4):
        pruning.prune_once(state, first, "initial", round)
    assert state.vector.tolist() == ahead["initial"]
    assert len(choices) == 3
    assert pruning.mask_round(replace(state, clients={1: ClientState(3)}), 1) == 3
