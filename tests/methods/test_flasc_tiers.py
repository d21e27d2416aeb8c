"""FLASC with tiers (Section 4.4): each client's upload budget is that of HetLoRA's client of its tier."""

import pytest
import torch

from fedsim.errors import ConfigurationError
from fedsim.ledger import Entry
from methods.flasc import FLASC
from methods.het_lora import HetLoRA
from tests import factored, pruned, tiny


def ledger(method: FLASC | HetLoRA) -> list[Entry]:
    *_, (watched, _) = pruned.rounds(method, 3)
    return watched.entries


@pytest.mark.parametrize("tiers", [2, 3])
def test_it_sends_as_many_values_as_hetlora_head_included(tiers: int) -> None:
    """Client by client, both ways. Of the tiny ViT, rank 1 is 6 modules of 16 + 16, beside a head of 51."""
    flasc, het = (ledger(kind(lora_rank=4, tiers=tiers)) for kind in (FLASC, HetLoRA))
    values = [(e.round, e.client, e.upload_values, e.download_values) for e in flasc]
    assert values == [(e.round, e.client, e.upload_values, e.download_values) for e in het]
    ranks = {2: (1, 4), 3: (1, 2, 4)}[tiers]
    assert {e.upload_values for e in flasc} == {51 + 192 * rank for rank in ranks}
    assert len(values) == 9


def test_the_download_may_have_a_density_of_its_own() -> None:
    method = FLASC(lora_rank=4, tiers=2, download_density=1.0)
    assert list(method.views(tiny.server_state([1.0, 2.0]))) == ["masked", "full"]  # all tiers hold the same
    entries = ledger(method)
    assert {e.download_values for e in entries} == {51 + 192 * 4}
    assert {e.upload_values for e in entries} == {51 + 192, 51 + 192 * 4}


def test_a_tiers_budget_by_hand() -> None:
    """One module of 1 by 1 under rank 2, beside a head of one: P is A (2), B (2), head (1).

    The lower tier's rank of 1 is one of A, one of B and the head: 3 of 5 values, and those are the head and LoRA's
    largest wherever they stand, not a slice. So the head travels down even where it is smallest.
    """
    method = FLASC(lora_rank=2, tiers=2, upload_density=0.25)
    state = factored.server({"one": (1, 1)}, lora_rank=2, head=1)
    state.vector.data = torch.tensor([0.1, -5.0, 0.2, 3.0, 0.05], dtype=torch.float64)
    shared = tiny.shared_of(state)
    clients = {rank: next(c for c in range(20) if method._tiers.rank_of(c, state.seed) == rank) for rank in (1, 2)}
    low, high = (method.download(state, shared, method.plan(state, 1, clients[rank])).values for rank in (1, 2))
    assert low.to_dense().tolist() == [0, -5.0, 0, 3.0, 0.05]
    assert high.to_dense().tolist() == state.vector.tolist()
    views = method.views(state)
    assert {name: view.tolist() for name, view in views.items()} == {
        "masked": high.to_dense().tolist(),
        "rank1": [0, -5.0, 0, 3.0, 0.05],
        "full": state.vector.tolist(),
    }
    assert next(iter(views)) == "masked"


def test_evaluate_before_step_keeps_each_tiers_mask_of_the_round() -> None:
    method = FLASC(lora_rank=2, tiers=2, evaluate_before_step=True)
    state = factored.server({"one": (1, 1)}, lora_rank=2, head=1)
    state.vector.data = torch.tensor([0.1, -5.0, 0.2, 3.0, 1.0], dtype=torch.float64)
    method.prepare(state, 1)
    state.vector.data = torch.tensor([9.0, 0.5, 8.0, 0.3, 7.0], dtype=torch.float64)
    views = {name: view.tolist() for name, view in method.views(state).items()}
    assert views["rank1"] == [0, 0.5, 0, 0.3, 7.0]
    assert views["masked"] == views["full"] == state.vector.tolist()


def test_its_label_has_the_ranks() -> None:
    assert FLASC(tiers=3).label == "FLASC ranks 1, 4, 16"
    assert FLASC(tiers=3, download_density=1.0).label == "FLASC ranks 1, 4, 16, down 1"


def test_tiers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a LoRA rank of 16 at the server, got 4"):
        FLASC(lora_rank=4, tiers=5)
    with pytest.raises(ConfigurationError, match=r"method\.tiers"):
        FLASC(tiers=2).check(tiny.layout_of(3))
    FLASC().check(tiny.layout_of(3))
