import pytest
import torch

from fedsim.errors import ConfigurationError
from fedsim.method import ServerState
from fedsim.parameters import Layout
from methods.fed_sparsify_global import FedSparsifyGlobal
from tests import pruned, tiny


def numbers(count: int) -> ServerState:
    """A backbone of the numbers from 1 up."""
    return tiny.server_state([float(number) for number in range(1, count + 1)], optimizer="sgd", lr=1.0)


def counts(method: FedSparsifyGlobal, state: ServerState, rounds: int) -> list[int]:
    """How many entries are kept in each round."""
    found = []
    for round in range(1, rounds + 1):
        mask = method.prepare(state, round)
        found.append(len(mask.get("kept", state.vector)))
    return found


def test_two_prunings_by_hand() -> None:
    """Half goes in rounds 2 and 3: of 1 to 8 the four largest stay, and of them those that have grown."""
    method = FedSparsifyGlobal(prune_fraction=0.5)
    state = numbers(8)
    assert method.prepare(state, 1) == {}
    method.step(state, torch.zeros(8, dtype=torch.float64))
    assert method.prepare(state, 2)["kept"].tolist() == [4, 5, 6, 7]
    method.step(state, torch.tensor([0, 100.0, 0, 0, -5.0, 0, 0, 7.0], dtype=torch.float64))
    assert state.vector.tolist() == [0, 0, 0, 0, 10, 6, 7, 1]
    shared = tiny.shared_of(state, 3, **method.prepare(state, 3))
    assert state.vector.tolist() == [0, 0, 0, 0, 10, 0, 7, 0]
    plan = method.plan(state, 3, 0)
    download = method.download(state, shared, plan)
    assert download.values.values.tolist() == [10, 7]
    assert [part.indices.tolist() for part in download.beside] == [[4, 6]]
    assert shared.tensors["kept"] is method.upload_support(shared, plan)
    assert method.views(state)["full"].tolist() == state.vector.tolist()


def test_the_iterative_schedule() -> None:
    """d is 1 at the first multiple of q and loses a quarter at each after it: of 64, 48, 36, 27 and 20.25."""
    assert counts(FedSparsifyGlobal(prune_fraction=0.25), numbers(64), 5) == [64, 48, 36, 27, 20]
    method = FedSparsifyGlobal(prune_fraction=0.25, prune_every_rounds=2)
    assert counts(method, numbers(64), 7) == [64, 64, 64, 48, 48, 36, 36]


def test_the_cubic_schedule_by_hand() -> None:
    """To a sparsity of 3/4 in four rounds: 1 - s_t is 1/4 + 3/4 (1 - t/4)^3, times 64 is 16 + 48 (27, 8, 1, 0) / 64.

    Round 1 comes after none, and is dense. With f = 2, t is 0, 0, 2, 2, 4.
    """
    options = {"schedule": "cubic", "final_sparsity": 0.75, "schedule_rounds": 4}
    assert counts(FedSparsifyGlobal(**options), numbers(64), 7) == [64, 36, 22, 16, 16, 16, 16]
    every_other = FedSparsifyGlobal(prune_every_rounds=2, **options)
    assert counts(every_other, numbers(64), 6) == [64, 64, 22, 22, 16, 16]


def test_the_backbone_and_the_head_each_keep_their_share_or_compete() -> None:
    """Two of four backbone weights and one of two of the head; a global mask keeps the three largest of all."""
    layout = tiny.layout_of(4, 2)
    head = layout.entries[1].__class__("head", torch.Size([2]), 4, "head", "head")
    layout = Layout((layout.entries[0], head))
    for scope, expected in (("segment", [2, 3, 5]), ("global", [1, 2, 3])):
        state = tiny.server_state([4.0, 5.0, 6.0, 7.0, 1.0, 2.0], layout)
        mask = FedSparsifyGlobal(prune_fraction=0.5, mask_scope=scope).prepare(state, 2)
        assert mask["kept"].tolist() == expected


def test_the_backbone_trains_within_the_mask_and_pays_for_it_once() -> None:
    *_, (watched, state) = pruned.rounds(FedSparsifyGlobal(prune_fraction=0.2), 4)
    assert not state.vector[~watched.masks[4]].any()
    assert set(state.layout.segments()) == {"backbone", "head"}
    pruned.assert_clients_stay_within(watched)
    pruned.assert_masks_are_paid_once(watched)


def test_labels_say_the_schedule() -> None:
    assert FedSparsifyGlobal().label == "FedSparsify-Global 0.997"
    cubic = FedSparsifyGlobal(schedule="cubic", final_sparsity=0.8, schedule_rounds=60, prune_every_rounds=5)
    assert cubic.label == "FedSparsify-Global sparsity 0.8 in 60 every 5"


@pytest.mark.parametrize(
    ("option", "value"),
    [("prune_fraction", 1.0), ("prune_every_rounds", 0), ("final_sparsity", 1.0), ("schedule_rounds", 0)],
)
def test_options_outside_their_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"method\.{option}"):
        FedSparsifyGlobal(**{option: value})
