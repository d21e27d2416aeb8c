import copy

import pytest
import torch

from fedsim.errors import ConfigurationError
from fedsim.method import ClientState, Download, ServerState
from fedsim.options import ServerOptions
from methods.adapter_lth import AdapterLTH
from methods.lora import LoRA
from tests import pruned, tiny


def begin(method: AdapterLTH, state: ServerState, round: int) -> Download:
    """What a newcomer downloads in a round."""
    shared = tiny.shared_of(state, round, **method.prepare(state, round))
    return method.download(state, shared, method.plan(state, round, 0))


def sent(download: Download) -> dict[int, float]:
    indices, values = download.values.indices, download.values.values.tolist()
    return dict(zip(range(len(values)) if indices is None else indices.tolist(), values, strict=True))


def test_three_rounds_by_hand() -> None:
    """Half goes at each pruning, the first time to d = 1; per factor and head; the server subtracts the update.

    Round 1 moves A[0] from 9 to 0.5, so that round 2 keeps -8 and 7 of A, 0.3 and 0.4 of B, -3 and 2 of the head. It
    moves -8 to -9 and 2 to 0.5, and round 3 keeps the largest of each: -9, 0.4 and -3.
    """
    method = AdapterLTH(prune_fraction=0.5)
    state = tiny.server_state(pruned.P, pruned.lora_layout(), optimizer="sgd", lr=1.0)
    assert sent(begin(method, state, 1)) == dict(enumerate(pruned.P))
    update = torch.zeros(12, dtype=torch.float64)
    update[0] = 8.5
    method.step(state, update)

    assert sent(begin(method, state, 2)) == {1: -8.0, 2: 7.0, 4: 0.3, 7: 0.4, 9: -3.0, 10: 2.0}
    assert state.vector.tolist() == [0, -8, 7, 0, 0.3, 0, 0, 0.4, 0, -3, 2, 0]
    update = torch.zeros(12, dtype=torch.float64)
    update[1], update[10] = 1, 1.5
    update[0] = 100.0  # as noise on every entry would; pruned entries do not heed it
    method.step(state, update)
    assert state.vector[0] == 0

    assert sent(begin(method, state, 3)) == {1: -9.0, 7: 0.4, 9: -3.0}
    assert list(method.views(state)) == ["masked", "full"]
    assert method.views(state)["full"].tolist() == [0, -9, 0, 0, 0, 0, 0, 0.4, 0, -3, 0, 0]


def test_the_main_view_is_what_the_next_client_downloads() -> None:
    """After every step, also the ones before the mask shrinks."""
    method = AdapterLTH(prune_fraction=0.5)
    state = tiny.server_state(pruned.P, pruned.lora_layout(), optimizer="sgd", lr=1.0)
    assert torch.equal(method.views(state)["masked"], state.vector)  # before training there is no mask
    for round in (1, 2, 3):
        begin(method, state, round)
        method.step(state, torch.full((12,), 0.05, dtype=torch.float64))
        views, kept = method.views(state), method.known(state)["kept"]
        assert torch.equal(views["full"], state.vector)
        assert views["masked"].nonzero().squeeze(1).tolist() == kept.tolist()
        following = copy.deepcopy(state)
        assert sent(begin(method, following, round + 1)) == {i: views["masked"][i].item() for i in kept.tolist()}


def test_between_two_prunings_the_main_view_is_p() -> None:
    method = AdapterLTH(prune_fraction=0.5, prune_every_rounds=2)
    state = tiny.server_state(pruned.P, pruned.lora_layout(), optimizer="sgd", lr=1.0)
    for round, left in ((1, 12), (2, 12), (3, 6), (4, 6)):
        begin(method, state, round)
        assert method.views(state)["masked"].count_nonzero() == left


def test_a_client_is_told_what_went_since_it_took_part() -> None:
    """Of a half that it knew, a quarter of all stays: three of the six that it holds."""
    method = AdapterLTH(prune_fraction=0.5)
    state = tiny.server_state(pruned.P, pruned.lora_layout())
    state.clients = {1: ClientState(2), 2: ClientState(1), 3: ClientState(3)}
    for round in (1, 2, 3):
        shared = tiny.shared_of(state, round, **method.prepare(state, round))
    plans = [method.plan(state, 3, client) for client in (0, 1, 2, 3)]
    assert [plan.since for plan in plans] == [0, 2, 0, 3]  # a newcomer and one of the dense round know the same
    told = [method.download(state, shared, plan).beside for plan in plans]
    # All of P has 12 entries, of which 3 are kept; in round 2 it was 0, 1, 4, 7, 9 and 10.
    assert [[(part.length, part.indices.tolist()) for part in parts] for parts in told] == [
        [(12, [0, 7, 9])],
        [(6, [0, 3, 4])],
        [(12, [0, 7, 9])],
        [],
    ]


def test_every_q_rounds_and_over_all_of_p() -> None:
    """With q = 2: d = 1 in round 2, a half in round 4; a global mask keeps six of twelve, A and two of the head."""
    method = AdapterLTH(prune_fraction=0.5, prune_every_rounds=2, mask_scope="global")
    state = tiny.server_state(pruned.P, pruned.lora_layout())
    for round in (1, 2, 3):
        assert method.prepare(state, round) == {}
    assert method.prepare(state, 4)["kept"].tolist() == [0, 1, 2, 3, 9, 10]
    assert "no entry of any B and 2 of the head's 4" in state.notes[0]
    assert len(method.prepare(state, 5)["kept"]) == 6
    assert len(method.prepare(state, 6)["kept"]) == 3
    assert len(state.notes) == 1


@pruned.every_server
def test_a_pruned_entry_never_comes_back(server: ServerOptions) -> None:
    """Of P's 435 entries (192, 192 and 51), 0.7 are left at each pruning: 134 + 134 + 35, 94 + 94 + 24, ..."""
    method = AdapterLTH(lora_rank=2, prune_fraction=0.3)
    assert pruned.assert_pruned_entries_stay_away(method, 5, server) == [435, 303, 212, 147, 104]


def test_the_mask_is_paid_once_and_then_its_changes() -> None:
    """Clients that missed rounds pay for what went meanwhile, newcomers for all that is gone."""
    method = AdapterLTH(lora_rank=2, prune_fraction=0.1, prune_every_rounds=2)
    *_, (watched, _) = pruned.rounds(method, 9)
    masks = watched.masks
    assert [int(masks[round].sum()) for round in (3, 4, 6, 8)] == [435, 172 + 172 + 45, 155 + 155 + 41, 139 + 139 + 37]
    paid = pruned.assert_masks_are_paid_once(watched)
    assert paid[:9] == [0] * 9  # rounds 1 to 3 are dense
    assert len(set(paid)) > 2  # some pay for one change, some for several, and some know the mask
    assert paid.count(0) > 9


def test_nothing_pruned_is_lora_bit_for_bit() -> None:
    ends = []
    for method in (AdapterLTH(lora_rank=2, prune_fraction=0.0), LoRA(lora_rank=2)):
        *_, (_, state) = pruned.rounds(method, 3)
        ends.append(state.vector)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("method", "label"),
    [
        (AdapterLTH(), "Adapter LTH 0.98"),
        (AdapterLTH(prune_fraction=0.01), "Adapter LTH 0.99"),
        (AdapterLTH(prune_every_rounds=25, mask_scope="global"), "Adapter LTH 0.98 every 25, global mask"),
    ],
)
def test_labels_are_the_papers(method: AdapterLTH, label: str) -> None:
    assert method.label == label


def test_options_outside_their_range_are_refused() -> None:
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigurationError, match=r"method\.prune_fraction"):
            AdapterLTH(prune_fraction=fraction)
    with pytest.raises(ConfigurationError, match=r"method\.prune_every_rounds"):
        AdapterLTH(prune_every_rounds=0)
