from dataclasses import replace

import pytest
import torch

from fedsim.codec import HEADER_BYTES
from fedsim.errors import ConfigurationError
from fedsim.method import Arrived, Plan
from fedsim.state import ClientState
from methods.fed_sa_lora import OWN, FedSALoRA
from tests import factored, tiny
from tests.rounds import rounds

METHOD = FedSALoRA(lora_rank=2)


def one_by_one() -> tiny.ServerState:
    """A module of 1 by 1 with A = 10 and B = 0, and a head of one value, 7."""
    state = factored.server({"one": (1, 1)}, lora_rank=1, head=1)
    assert [entry.segment for entry in state.layout.entries] == ["A", "B", "head"]
    state.vector.data.copy_(torch.tensor([10.0, 0.0, 7.0]))
    return replace(state, initial=state.vector.detach().clone())


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_round_by_hand(weighting: str) -> None:
    """Clients of 1 and 3 examples come to A = 1 and 5, B = 2 and 4, and a head of 6 and 8; only A is sent.

    By examples A = (1 + 15) / 4 = 4, uniform 3. The diagnostic has B = 3 and the head 7. The mean of the products is
    (2 + 60) / 4 = 15.5 against 4 * 3.5 (B by the same weights), or (2 + 20) / 2 = 11 against 3 * 3.
    """
    method = FedSALoRA(lora_rank=1, weighting=weighting)  # type: ignore[arg-type]
    state = one_by_one()
    shared, any_job = tiny.shared_of(state), tiny.build().job(0, 4)
    aggregate = method.aggregate(state, shared)
    support = method.upload_support(shared, Plan())
    assert support is not None
    assert support.tolist() == [0]
    for client, (examples, trained) in enumerate(((1, [1.0, 2.0, 6.0]), (3, [5.0, 4.0, 8.0]))):
        job = replace(any_job, shared=shared, reference=state.initial)
        upload = method.upload(job, torch.tensor(trained, dtype=torch.float64))
        assert upload.update is not None
        assert (upload.update.indices.tolist(), upload.update.values.tolist()) == ([0], [10 - trained[0]])  # type: ignore[union-attr]
        assert upload.state[OWN].tolist() == trained[1:]
        aggregate.add(Arrived(client, Plan(), upload.update, (), examples, 1.0))
        state.clients[client] = ClientState(1, upload.state)
    update = aggregate.finish()
    assert update is not None
    method.step(state, update)
    mean_a, error = (4.0, 1.5 / 15.5) if weighting == "examples" else (3.0, 2 / 11)
    assert state.vector.tolist() == [mean_a, 0.0, 7.0]  # the server never learns of a B
    assert {name: view.tolist() for name, view in method.views(state).items()} == {"diagnostic_mean": [mean_a, 3, 7]}
    assert state.measures == {"product_error": pytest.approx(error, rel=1e-9)}
    view = method.views(state)["diagnostic_mean"]
    assert method.personal(shared, view, state.client(1)).tolist() == [mean_a, 4, 8]
    assert method.personal(shared, view, state.client(9)).tolist() == [mean_a, 0, 7]  # never sampled


def test_before_the_first_round_the_view_is_the_start() -> None:
    state = one_by_one()
    assert METHOD.views(state)["diagnostic_mean"].tolist() == [10, 0, 7]


@pytest.mark.parametrize("share_head", [False, True])
def test_a_client_goes_on_with_its_own_b_and_head(share_head: bool) -> None:
    """In the mean A; A alone travels, and without indices. Who was never sampled costs no memory."""
    method = FedSALoRA(lora_rank=2, share_head=share_head)
    held: dict[int, torch.Tensor] = {}
    again = 0
    server = tiny.build(method, dtype=torch.float64).vector.clone()
    for played in rounds(method, 4, sizes=[5, 4, 3, 4, 3, 5, 3, 5, 4, 4]):
        layout = played.state.layout
        shared = layout.where(["A", "head"] if share_head else ["A"])
        own = layout.where(["B"] if share_head else ["B", "head"])
        for done in played.trained:
            client, start = done.job.client, done.job.start
            assert torch.equal(start[shared], server[shared])
            assert torch.equal(start[own], held.get(client, server)[own])
            assert (done.vector[own] != start[own]).any()
            again += client in held
            held[client] = done.vector
            assert torch.equal(played.state.clients[client].tensors[OWN], done.vector[own])
        values = 192 + 51 * share_head
        assert {e.upload_bytes for e in played.entries} == {HEADER_BYTES + 8 * values}
        assert {e.download_bytes for e in played.entries} == {HEADER_BYTES + 8 * values}
        assert set(played.state.clients) == set(held)
        server = played.state.vector.detach().clone()
    assert again
    assert len(held) < 10
    view = method.views(played.state)["diagnostic_mean"]
    torch.testing.assert_close(view[own], torch.stack(list(held.values()))[:, own].mean(0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("lacking", ["A", "B"])
def test_it_needs_both_factors(lacking: str) -> None:
    layout = one_by_one().layout
    METHOD.check(layout)
    with pytest.raises(ConfigurationError, match="FedSALoRA needs LoRA's two factors"):
        METHOD.check(replace(layout, entries=tuple(e for e in layout.entries if e.segment != lacking)))
