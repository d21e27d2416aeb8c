from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.client import Trained, Trainer
from fedsim.errors import ConfigurationError
from fedsim.method import ClientJob, Method
from fedsim.options import CommunicationOptions, ServerOptions
from fedsim.simulation import simulate
from fedsim.sparse import SparseVector
from methods.flasc import FLASC
from methods.lora import LoRA
from tests import tiny

P = [4.0, -3.0, 0.5, 2.0, -1.0, 6.0, 0.1, -5.0]
LAYERS = tiny.layout_of(5, 3)


def kept(vector: SparseVector) -> dict[int, float]:
    assert vector.indices is not None
    return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))


@cache
def any_job() -> ClientJob:
    return tiny.build().job(0, 4)


def sent_down(method: Method, state: tiny.ServerState, client: int = 0) -> SparseVector:
    plan = method.plan(state, 1, client)
    assert plan is not None
    return method.download(state, tiny.shared_of(state), plan).values


def sent_up(method: FLASC, job: ClientJob, trained: Tensor) -> SparseVector:
    upload = method.upload(job, trained)
    assert upload.update is not None
    return upload.update


def job_from(method: FLASC, state: tiny.ServerState, client: int = 0) -> ClientJob:
    start, plan = sent_down(method, state, client).to_dense(), method.plan(state, 1, client)
    return replace(any_job(), start=start, reference=start, plan=plan, shared=tiny.shared_of(state))


def view(method: FLASC, state: tiny.ServerState) -> list[float]:
    return method.views(state)["masked"].tolist()


def test_a_round_by_hand() -> None:
    """Algorithm 1 at a quarter both ways: the two largest of eight entries travel.

    Down: P[5] = 6 and P[7] = -5. The first client moves entries 0, 5 and 6 by -3, 1 and 0.5 and sends its two
    largest, which are not those that it was sent; the second moves 5 and 7 by -2 and 4. The mean over both has zeros
    where an entry was not sent, and the server (rate 1) subtracts it from the whole P, unmasked.
    """
    method = FLASC(upload_density=0.25)
    state = tiny.server_state(P, optimizer="sgd", lr=1.0)
    assert method.prepare(state, 1) == {}
    assert kept(sent_down(method, state)) == {5: 6.0, 7: -5.0}

    job = job_from(method, state)
    assert method.moving(job.shared, job.plan) is None  # the client trains every entry, those it was not sent too
    moves = [{0: -3.0, 5: 1.0, 6: 0.5}, {5: -2.0, 7: 4.0}]
    uploads = []
    for move in moves:
        trained = job.start.clone()
        for index, by in move.items():
            trained[index] += by
        uploads.append(sent_up(method, job, trained))
    assert [kept(upload) for upload in uploads] == [{0: 3.0, 5: -1.0}, {5: 2.0, 7: -4.0}]

    aggregate = method.aggregate(state, tiny.shared_of(state))
    for upload in uploads:
        aggregate.add(tiny.arrived(upload))
    update = aggregate.finish()
    assert update is not None
    assert update.tolist() == [1.5, 0, 0, 0, 0, 0.5, 0, -2.0]
    method.step(state, update)
    assert state.vector.tolist() == [2.5, -3.0, 0.5, 2.0, -1.0, 5.5, 0.1, -3.0]
    assert view(method, state) == [0, -3.0, 0, 0, 0, 5.5, 0, 0]
    assert method.views(state)["full"].tolist() == state.vector.tolist()


def test_the_main_view_is_what_the_next_client_downloads() -> None:
    method = FLASC(upload_density=0.5, download_density=0.25)
    state = tiny.server_state(P)
    assert next(iter(method.views(state))) == "masked"
    assert view(method, state) == sent_down(method, state, client=3).to_dense().tolist()


def test_evaluate_before_step_keeps_the_mask_of_the_round() -> None:
    """The published code evaluates the new values under the mask that the round's clients had downloaded."""
    method = FLASC(upload_density=0.25, evaluate_before_step=True)
    state = tiny.server_state(P, optimizer="sgd", lr=1.0)
    assert view(method, state) == [0, 0, 0, 0, 0, 6.0, 0, -5.0]  # before the first round there is only one mask
    method.prepare(state, 1)
    update = torch.zeros(8, dtype=torch.float64)
    update[5], update[7], update[1] = 5.5, -4.8, 4.0
    method.step(state, update)
    assert view(method, state) == pytest.approx([0, 0, 0, 0, 0, 0.5, 0, -0.2])
    assert view(FLASC(upload_density=0.25), tiny.server_state(state.vector.tolist()))[:2] == [4.0, -7.0]
    method.prepare(state, 2)
    assert [i for i, value in enumerate(view(method, state)) if value] == [0, 1]


@settings(deadline=None)
@given(st.floats(1e-4, 1, exclude_max=True), st.floats(1e-4, 1, exclude_max=True), st.integers(1, 300))
def test_exactly_k_entries_travel(up: float, down: float, length: int) -> None:
    method = FLASC(upload_density=up, download_density=down)
    vector = torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    state = tiny.server_state(vector.tolist())
    assert sent_down(method, state).count == max(1, int(down * length))
    job = job_from(method, state)
    assert sent_up(method, job, job.start + vector).count == max(1, int(up * length))


def test_scope_layer_keeps_the_fraction_of_every_layer() -> None:
    """Of 5 and 3 entries a half is 2 and 1, though the three largest stand elsewhere."""
    method = FLASC(upload_density=0.5, topk_scope="layer")
    state = tiny.server_state([4.0, 3.0, 0.5, 2.0, 1.0, 6.0, 0.1, 5.0], LAYERS)
    assert kept(sent_down(method, state)) == {0: 4.0, 1: 3.0, 5: 6.0}
    job = job_from(method, state)
    moved = torch.tensor([9.0, 8, 7, 6, 5, 3, 2, 1], dtype=torch.float64)
    assert kept(sent_up(method, job, job.start - moved)) == {0: 9.0, 1: 8.0, 5: 3.0}
    assert [i for i, value in enumerate(view(method, state)) if value] == [0, 1, 5]


def test_scope_layer_keeps_at_least_one_entry_of_each_adapter_and_the_head() -> None:
    built = tiny.build(FLASC(lora_rank=2, upload_density=0.001, topk_scope="layer"))
    state = tiny.server_state(built.start().tolist(), built.parameters.layout)
    places = kept(sent_down(built.method, state))
    assert [sum(start <= place < stop for place in places) for start, stop in state.layout.layers] == [1] * 7


def test_a_whole_upload_or_download_is_dense() -> None:
    """Without indices to pay for: FLASC at density 1 is dense LoRA."""
    state = tiny.server_state(P)
    for method in (FLASC(upload_density=1.0), FLASC(upload_density=0.25, download_density=1.0)):
        assert sent_down(method, state).indices is None
        assert view(method, state) == P
    method = FLASC(upload_density=1.0, download_density=0.25)
    job = job_from(method, state)
    assert sent_up(method, job, job.start - 1).indices is None


@pytest.mark.parametrize(
    ("method", "label"),
    [
        (FLASC(), "FLASC 1/4"),
        (FLASC(upload_density=1 / 16), "FLASC 1/16"),
        (FLASC(upload_density=0.3), "FLASC 0.3"),
        (FLASC(upload_density=1.0), "FLASC 1"),
        (FLASC(upload_density=0.25, download_density=0.25), "FLASC 1/4"),
        (FLASC(upload_density=1 / 64, download_density=1.0), "FLASC 1/64, down 1"),
        (FLASC(tiers=3), "FLASC ranks 1, 4, 16"),
        (FLASC(tiers=2, tier_base=2, download_density=0.25), "FLASC ranks 8, 16, down 1/4"),
    ],
)
def test_labels_say_the_densities(method: FLASC, label: str) -> None:
    assert method.label == label


def clients_by_tier(method: FLASC, state: tiny.ServerState) -> dict[float, int]:
    """One client of each tier, by the density of its upload."""
    return {method.plan(state, 1, client).upload_density: client for client in range(20)}


def test_tiers_send_as_many_values_as_hetlora_would() -> None:
    """Rank 2 has 192 entries in A and in B each and 51 in the head; rank 1 has half of the former: 243 of 435."""
    method = FLASC(lora_rank=2, tiers=2)
    built = tiny.build(method)
    state = tiny.server_state(built.start().tolist(), built.parameters.layout)
    lower, higher = (client for _, client in sorted(clients_by_tier(method, state).items()))
    for client, count in ((lower, 243), (higher, 435)):
        assert sent_down(method, state, client).count == count
        job = job_from(method, state, client)
        assert sent_up(method, job, job.start - state.vector.detach()).count == count
    assert sent_down(method, state, higher).indices is None  # everything travels: no index to pay for
    whole = state.vector.detach()
    views = method.views(state)
    assert list(views) == ["masked", "rank1", "full"]
    assert torch.equal(views["masked"], whole)
    head = state.layout.where(["head"])
    factors = whole.index_fill(0, head, 0)
    sent = torch.cat([head, factors.abs().argsort(descending=True)[:192]])
    assert torch.equal(views["rank1"], torch.zeros_like(whole).index_copy(0, sent, whole[sent]))


def test_a_download_density_holds_for_every_tier() -> None:
    method = FLASC(lora_rank=2, tiers=2, download_density=0.25)
    built = tiny.build(method)
    state = tiny.server_state(built.start().tolist(), built.parameters.layout)
    assert len(clients_by_tier(method, state)) == 2
    assert {sent_down(method, state, client).count for client in range(20)} == {108}


def test_tiers_are_refused_where_there_is_no_rank_to_cut() -> None:
    FLASC().check(LAYERS)
    with pytest.raises(ConfigurationError, match=r"method\.tiers"):
        FLASC(tiers=2).check(LAYERS)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(ConfigurationError, match=r"method\.upload_density"):
        FLASC(upload_density=density)
    with pytest.raises(ConfigurationError, match=r"method\.download_density"):
        FLASC(download_density=density)


@dataclass
class Watched:
    """A trainer that remembers what it trained."""

    trainer: Trainer
    done: list[Trained]

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        for trained in self.trainer.train(jobs):
            self.done.append(trained)
            yield trained


def run(method: Method, rounds: int, **fields: object) -> tuple[Tensor, list[Trained]]:
    built = tiny.build(method, dtype=torch.float64)
    built.parameters.load(built.start())
    watched = Watched(built.sequential(), [])
    whole = {"communication": CommunicationOptions(value_dtype="float64"), "trainer": watched}
    experiment = tiny.experiment(built, [5, 4, 9, 6, 7], **(whole | fields))
    experiment = replace(experiment, run=replace(experiment.run, rounds=rounds))
    return simulate(experiment, tiny.ONE_WORKER, None, None).vector, watched.done


def test_density_one_with_sgd_of_rate_one_is_fedavg() -> None:
    """After each round the server holds the plain mean of its clients' trained vectors."""
    for rounds in (1, 3):
        method = FLASC(lora_rank=2, upload_density=1.0)
        vector, done = run(method, rounds, server=ServerOptions("sgd", lr=1.0))
        last = [trained.vector for trained in done[-3:]]
        torch.testing.assert_close(vector, sum(last) / 3, rtol=0, atol=1e-12)
        assert not torch.allclose(last[0], last[1], rtol=0, atol=1e-6)


def test_weighting_by_examples_is_fedavg_as_published() -> None:
    server = ServerOptions("sgd", lr=1.0, weighting="examples")
    vector, done = run(FLASC(lora_rank=2, upload_density=1.0), 1, server=server)
    counts = [int((trained.job.batches >= 0).sum()) for trained in done]
    assert len(set(counts)) > 1
    expected = sum(n * trained.vector for n, trained in zip(counts, done, strict=True)) / sum(counts)
    torch.testing.assert_close(vector, expected, rtol=0, atol=1e-12)


def test_density_one_is_dense_lora_bit_for_bit() -> None:
    flasc, _ = run(FLASC(lora_rank=2, upload_density=1.0), 2)
    lora, _ = run(LoRA(lora_rank=2), 2)
    assert torch.equal(flasc, lora)


def test_a_client_trains_what_it_was_not_sent() -> None:
    """Nothing is frozen: at 1/16 down, entries that arrived as zeros move as well (Section 3)."""
    _, done = run(FLASC(lora_rank=2, upload_density=1 / 16), 1)
    for trained in done:
        not_sent = trained.job.start == 0
        assert not_sent.sum() == len(not_sent) - int(len(not_sent) / 16)
        assert (trained.vector[not_sent] != 0).double().mean() > 0.5
