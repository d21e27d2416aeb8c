import pytest
import torch

from fedsim.errors import ConfigurationError
from fedsim.method import ServerState
from fedsim.options import ServerOptions
from methods.lora import LoRA
from methods.sparse_adapter import SparseAdapter
from tests import pruned, tiny


def after_the_dense_round(method: SparseAdapter, **options: object) -> ServerState:
    """One step of rate 1 took A[0] of `pruned.P` from 9 to 0.5, B[1] from 0.1 to 5.1, head[3] from 0.5 to -0.5."""
    state = tiny.server_state(pruned.P, pruned.lora_layout(), **({"optimizer": "sgd", "lr": 1.0} | options))
    assert method.prepare(state, 1) == {}
    download = method.download(state, tiny.shared_of(state), method.plan(state, 1, 0))
    assert download.values.to_dense().tolist() == pruned.P
    assert download.beside == ()
    update = torch.zeros(12, dtype=torch.float64)
    update[0], update[5], update[11] = 8.5, -5, 1
    method.step(state, update)
    return state


def test_a_dense_round_then_the_mask_by_hand() -> None:
    """A half of A is -8 and 7, of B 5.1 and 0.4, of the head -3 and 2; from then on nothing else moves."""
    method = SparseAdapter(density=0.5)
    state = after_the_dense_round(method)
    expected = [0, -8, 7, 0, 0, 5.1, 0, 0.4, 0, -3, 2, 0]
    assert method.views(state)["masked"].tolist() == expected  # what the next client downloads
    assert state.vector[0] == 0.5

    shared = tiny.shared_of(state, 2, **method.prepare(state, 2))
    assert state.vector.tolist() == expected
    assert shared.tensors["kept"].tolist() == [1, 2, 5, 7, 9, 10]
    plan = method.plan(state, 2, 0)
    download = method.download(state, shared, plan)
    assert download.values.values.tolist() == [-8, 7, 5.1, 0.4, -3, 2]
    assert [(part.length, part.indices.tolist()) for part in download.beside] == [(12, [1, 2, 5, 7, 9, 10])]
    for support in (method.upload_support(shared, plan), method.download_support(shared, plan)):
        assert support is shared.tensors["kept"]

    update = torch.zeros(12, dtype=torch.float64)
    update[[1, 2]] = torch.tensor([-7.9, 6.9], dtype=torch.float64)  # now they are smaller than what was removed
    update[0] = 100.0  # as noise on every entry would; pruned entries do not heed it
    method.step(state, update)
    assert method.prepare(state, 3)["kept"].tolist() == [1, 2, 5, 7, 9, 10]
    assert method.views(state)["masked"].tolist() == pytest.approx([0, -0.1, 0.1, *expected[3:]])


def test_from_p_as_it_was_before_the_dense_round() -> None:
    """The listing's line 20 has P, not P': its B is what setup drew."""
    method = SparseAdapter(density=0.5, go_on_from="initial")
    state = after_the_dense_round(method)
    method.prepare(state, 2)
    assert state.vector.tolist() == [0, -8, 7, 0, 0, 0.1, 0, 0.4, 0, -3, 2, 0]


def test_over_all_of_p() -> None:
    """Six of twelve: three of A, one of B, two of the head."""
    state = after_the_dense_round(SparseAdapter(density=0.5, mask_scope="global"))
    assert SparseAdapter(density=0.5, mask_scope="global").prepare(state, 2)["kept"].tolist() == [1, 2, 3, 5, 9, 10]
    assert state.notes == []


@pytest.mark.parametrize("fresh", [True, False])
def test_adam_starts_anew_with_the_mask(fresh: bool) -> None:
    """Fresh, the next step counts as the first: every entry with a gradient moves by the rate, bias-corrected."""
    method = SparseAdapter(density=0.5, fresh_optimizer=fresh)
    state = after_the_dense_round(method, optimizer="adam", lr=0.5)
    method.prepare(state, 2)
    before = state.vector.detach().clone()
    update = torch.zeros(12, dtype=torch.float64)
    update[9] = 7.0
    method.step(state, update)
    moved = (state.vector.detach() - before).tolist()
    # Fresh: -0.5. Else exp_avg is 0.1 * 7 and exp_avg_sq 0.001 * 49, over 1 - 0.9^2 and 1 - 0.999^2.
    assert moved[9] == pytest.approx(-0.5 if fresh else -0.5 * (0.7 / 0.19) / (0.049 / 0.001999) ** 0.5)
    # B[1] was pushed up in the dense round, and is kept: only what remembers that moves it on.
    assert (moved[5] > 0.1) is not fresh
    assert moved[11] == 0  # the head's last was pushed too, and is pruned


@pruned.every_server
def test_a_pruned_entry_never_comes_back(server: ServerOptions) -> None:
    """A quarter of 192, 192 and 51."""
    assert pruned.assert_pruned_entries_stay_away(SparseAdapter(lora_rank=2), 4, server) == [435, 108, 108, 108]


def test_the_mask_is_paid_once() -> None:
    *_, (watched, _) = pruned.rounds(SparseAdapter(lora_rank=2), 6)
    paid = pruned.assert_masks_are_paid_once(watched)
    first = {entry.client: cost for entry, cost in zip(watched.entries, paid, strict=True) if cost}
    assert len(first) == 5  # everybody once
    assert sum(cost > 0 for cost in paid) == 5
    assert len(set(first.values())) == 1


def test_a_global_mask_kills_the_adapter_of_a_vit_and_says_so_once() -> None:
    """After a round of Adam all of B is as large as the server's rate, and A is larger: nothing of B is kept."""
    *_, (watched, state) = pruned.rounds(SparseAdapter(lora_rank=2, mask_scope="global"), 3)
    assert len(watched.notes) == 1
    assert "no entry of any B" in watched.notes[0]
    assert "method.mask_scope segment" in watched.notes[0]
    assert not state.vector[state.layout.where(["B"])].any()


def test_a_mask_of_each_segment_keeps_the_adapter_alive() -> None:
    *_, (watched, state) = pruned.rounds(SparseAdapter(lora_rank=2), 3)
    assert watched.notes == []
    assert int((state.vector[state.layout.where(["B"])] != 0).sum()) == 48


def test_the_first_round_is_loras() -> None:
    ends = []
    for method in (SparseAdapter(lora_rank=2), LoRA(lora_rank=2)):
        *_, (_, state) = pruned.rounds(method, 1)
        ends.append(state.vector)
    assert torch.equal(*ends)


def test_labels_say_the_density() -> None:
    assert SparseAdapter().label == "SparseAdapter 1/4"
    assert SparseAdapter(density=0.1, mask_scope="global").label == "SparseAdapter 1/10, global mask"


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan")])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(ConfigurationError, match=r"method\.density"):
        SparseAdapter(density=density)
