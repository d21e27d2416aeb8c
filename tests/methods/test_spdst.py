import numpy as np
import pytest
import torch

from fedsim.errors import ConfigurationError
from fedsim.method import ClientState, ServerState
from methods.sparse_adapter import SparseAdapter
from methods.spdst import SPDST, entries_per_tensor, random_entries
from tests import pruned, tiny

FIRST, SECOND = [9.0, -8.0, 7.0, 0.1], [0.2, 0.3, -6.0, 0.4]


def after_the_dense_round(method: SPDST, seed: int = 0) -> ServerState:
    """A backbone of two tensors, of which one step of rate 1 took the first entry from 9 to 5."""
    state = tiny.server_state(FIRST + SECOND, tiny.layout_of(4, 4), optimizer="sgd", lr=1.0)
    state.seed = seed
    assert method.prepare(state, 1) == {}
    method.step(state, torch.tensor([4.0] + [0] * 7, dtype=torch.float64))
    return state


def test_a_dense_round_then_the_mask_by_hand() -> None:
    """Half of eight: -8, 7, -6 and 5, wherever they stand."""
    method = SPDST(density=0.5)
    state = after_the_dense_round(method)
    expected = [5, -8, 7, 0, 0, 0, -6, 0]
    assert method.views(state)["masked"].tolist() == expected
    shared = tiny.shared_of(state, 2, **method.prepare(state, 2))
    assert state.vector.tolist() == expected
    plan = method.plan(state, 2, 0)
    download = method.download(state, shared, plan)
    assert download.values.values.tolist() == [5, -8, 7, -6]
    assert [part.indices.tolist() for part in download.beside] == [[0, 1, 2, 6]]
    assert method.upload_support(shared, plan).tolist() == [0, 1, 2, 6]
    method.step(state, torch.ones(8, dtype=torch.float64))
    assert state.vector.tolist() == [4, -9, 6, 0, 0, 0, -7, 0]
    assert method.prepare(state, 3)["kept"].tolist() == [0, 1, 2, 6]


def test_the_originals_mask_is_random_with_the_densities_of_the_largest() -> None:
    """Three of the first tensor and one of the second; each entry as likely as its neighbours; of the initial P."""
    method = SPDST(density=0.5, random_mask=True, go_on_from="initial")
    drawn = torch.zeros(8)
    for seed in range(200):
        state = after_the_dense_round(method, seed)
        ahead = method.views(state)["masked"]
        kept = method.prepare(state, 2)["kept"]
        assert torch.equal(ahead, state.vector)
        assert (int((kept < 4).sum()), int((kept >= 4).sum())) == (3, 1)
        assert state.vector[kept].tolist() == torch.tensor(FIRST + SECOND, dtype=torch.float64)[kept].tolist()
        drawn[kept] += 1
    assert (drawn[:4] / 200 - 3 / 4).abs().max() < 0.1
    assert (drawn[4:] / 200 - 1 / 4).abs().max() < 0.1


def test_a_random_mask_travels_as_a_seed_and_counts() -> None:
    """Eight bytes and four for each tensor, from which a client draws the same; who has it pays nothing."""
    method = SPDST(density=0.5, random_mask=True)
    state = after_the_dense_round(method, seed=2**40 + 7)
    shared = tiny.shared_of(state, 2, **method.prepare(state, 2))
    (recipe,) = method.download(state, shared, method.plan(state, 2, 0)).beside
    assert isinstance(recipe, bytes)
    seed, counts = int.from_bytes(recipe[:8], "little"), np.frombuffer(recipe[8:], "<u4")
    assert (seed, counts.tolist()) == (2**40 + 7, [3, 1])
    assert torch.equal(random_entries(state.layout, counts, seed), shared.tensors["kept"])
    state.clients[5] = ClientState(2)
    assert method.download(state, shared, method.plan(state, 3, 5)).beside == ()


def test_entries_are_counted_tensor_by_tensor() -> None:
    layout = tiny.layout_of(3, 1, 4)
    assert entries_per_tensor(layout, torch.tensor([0, 2, 4, 5, 6, 7])).tolist() == [2, 0, 4]
    assert random_entries(layout, np.array([3, 0, 4]), 0).tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_the_backbone_trains_within_the_mask_and_pays_for_it_once() -> None:
    *_, (watched, state) = pruned.rounds(SPDST(), 3)
    assert not state.vector[~watched.masks[3]].any()
    sizes = state.layout.segments()
    assert int(watched.masks[3].sum()) == int(0.75 * sizes["backbone"]) + int(0.75 * sizes["head"])
    pruned.assert_clients_stay_within(watched)
    pruned.assert_masks_are_paid_once(watched)


def test_on_lora_it_is_sparse_adapter() -> None:
    ends = []
    for method in (SPDST(lora_rank=2, density=0.25, parameters="lora"), SparseAdapter(lora_rank=2)):
        *_, (_, state) = pruned.rounds(method, 3)
        ends.append(state.vector)
    assert torch.equal(*ends)


def test_labels_say_what_differs() -> None:
    assert SPDST().label == "SPDST 0.75"
    method = SPDST(density=0.5, random_mask=True, parameters="lora", mask_scope="global")
    assert method.label == "SPDST 1/2, random mask, LoRA, global mask"


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan")])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(ConfigurationError, match=r"method\.density"):
        SPDST(density=density)
