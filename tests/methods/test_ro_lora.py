from dataclasses import replace

import pytest
import torch

from fedsim.codec import HEADER_BYTES
from fedsim.errors import ConfigurationError
from fedsim.method import Plan
from fedsim.state import ClientState
from methods.ro_lora import RoLoRA
from tests import factored, tiny
from tests.rounds import rounds

METHOD = RoLoRA(lora_rank=2)


def factor_of(round: int) -> str:
    return "B" if round % 2 else "A"


def test_two_rounds_by_hand() -> None:
    """A module of 1 by 1, A = 2 and B = 0 at first.

    Round 1: clients of 1 and 3 examples come to B = 1 and B = 4. The mean is uniform, 2.5; A stays. Round 2: they come
    to A = 1 and A = 5 under that B: A = 3. The products' mean is the product, 5 and then 7.5.
    """
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    state.vector.data.copy_(factored.given(state, a=[2], b=[0])[0].vector)
    factored.run_round(METHOD, state, factored.given(state, a=[2, 2], b=[1, 4], examples=[1, 3]), round=1)
    a, b = factored.factors(state)["one"]
    assert (a.item(), b.item()) == (2, 2.5)
    factored.run_round(METHOD, state, factored.given(state, a=[1, 5], b=[2.5, 2.5], examples=[1, 3]), round=2)
    a, b = factored.factors(state)["one"]
    assert (a.item(), b.item()) == (3, 2.5)
    assert state.measures["product_error"] <= 1e-6


def test_weights_by_examples_on_request() -> None:
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    state.vector.data.copy_(factored.given(state, a=[2], b=[0])[0].vector)
    factored.run_round(RoLoRA(weighting="examples"), state, factored.given(state, [2, 2], [1, 4], examples=[1, 3]))
    assert factored.factors(state)["one"][1].item() == 3.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_factor_trains_travels_and_moves(dtype: torch.dtype) -> None:
    """The other keeps every bit, at the clients and at the server; the head always moves."""
    before = tiny.build(METHOD, dtype=dtype).vector.clone()
    item = dtype.itemsize
    for played in rounds(METHOD, 4, dtype=dtype):
        layout, moved = played.state.layout, played.state.vector.detach() != before
        active, other = layout.where([factor_of(played.number)]), layout.where([factor_of(played.number + 1)])
        head = layout.where(["head"])
        for done in played.trained:
            assert torch.equal(done.vector[other], done.job.start[other])
            assert torch.equal(done.job.start, before)
            assert (done.vector[active] != done.job.start[active]).any()
        assert not moved[other].any()
        assert moved[active].any()
        assert moved[head].all()
        travelled = torch.cat([active, head])
        mean = torch.stack([done.vector for done in played.trained])[:, travelled].mean(0)
        torch.testing.assert_close(played.state.vector.detach()[travelled], mean, rtol=0, atol=1e-6)
        assert {e.upload_bytes for e in played.entries} == {HEADER_BYTES + item * (192 + 51)}
        assert played.measures["product_error"] <= 1e-6
        before = played.state.vector.detach().clone()


def test_who_missed_the_round_before_pays_for_both_factors() -> None:
    """A newcomer too, in every round."""
    last: dict[int, int] = {}
    kinds = set()
    for played in rounds(METHOD, 8, dtype=torch.float32):
        for entry in played.entries:
            kept_up = last.get(entry.client) == played.number - 1 > 0
            kinds.add((kept_up, entry.client in last))
            values = 192 + 51 if kept_up else 2 * 192 + 51
            assert (entry.download_values, entry.download_bytes) == (values, HEADER_BYTES + 4 * values)
            last[entry.client] = played.number
        assert {c: held.round for c, held in played.state.clients.items()} == last
    assert kinds == {(True, True), (False, True), (False, False)}


def test_what_goes_down_is_what_the_last_step_changed() -> None:
    """In round 3 the client of round 2 lacks A, which round 2 trained."""
    state = factored.server({"one": (2, 3)}, lora_rank=1)
    state.clients = {4: ClientState(2), 5: ClientState(1)}
    shared = tiny.shared_of(state, 3, **METHOD.prepare(state, 3))
    plans = [METHOD.plan(state, 3, client) for client in (4, 5, 6)]
    assert plans == [Plan(since=2), Plan(), Plan()]
    support = METHOD.download_support(shared, plans[0])
    assert support is not None
    assert support.tolist() == state.layout.where(["A", "head"]).tolist()
    assert METHOD.download_support(shared, plans[1]) is None
    assert METHOD.upload_support(shared, plans[0]).tolist() == state.layout.where(["B", "head"]).tolist()  # type: ignore[union-attr]


def test_clients_that_are_evaluated_train_both() -> None:
    """There is no round then, and nothing that prepare would have told."""
    assert METHOD.upload_support(tiny.build(METHOD).shared(round=0), Plan()) is None


@pytest.mark.parametrize("lacking", ["A", "B"])
def test_it_needs_both_factors(lacking: str) -> None:
    layout = factored.server({"one": (2, 2)}, lora_rank=1).layout
    METHOD.check(layout)
    with pytest.raises(ConfigurationError, match="RoLoRA needs LoRA's two factors"):
        METHOD.check(replace(layout, entries=tuple(e for e in layout.entries if e.segment != lacking)))
