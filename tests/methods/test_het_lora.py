import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.codec import HEADER_BYTES
from fedsim.errors import ConfigurationError
from fedsim.jobs import gradient_mask
from fedsim.method import Arrived, ClientJob, Plan
from fedsim.options import ServerOptions
from fedsim.parameters import Layout, Place
from fedsim.sparse import SparseVector
from fedsim.state import ClientState
from methods.het_lora import RANK, HetLoRA, tail_size
from methods.lora import LoRA
from tests import factored, tiny
from tests.rounds import rounds

A, B, HEAD = [[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]], [9.0]
SLICE = [0, 1, 4, 6, 8]
"""Where rank 1 stands in P: the first row of A, the first column of B, the head."""


def layout() -> Layout:
    """One module of 2 by 2 under rank 2, and a head of one."""
    names = (("m.lora_A.w", (2, 2), 0, "A", "m"), ("m.lora_B.w", (2, 2), 4, "B", "m"), ("h", (1,), 8, "head", "h"))
    return Layout(tuple(Place(name, torch.Size(shape), at, s, layer) for name, shape, at, s, layer in names))


def vector(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], head: Sequence[float]) -> Tensor:
    return torch.tensor([x for part in (*a, *b, head) for x in part], dtype=torch.float64)


def server() -> tiny.ServerState:
    return tiny.server_state(vector(A, B, HEAD).tolist(), layout(), optimizer="sgd", lr=1.0)


def job_of(method: HetLoRA, lora_rank: int, start: Tensor, places: Layout | None = None) -> ClientJob:
    shared = replace(any_job().shared, layout=places or layout())
    plan = Plan(lora_rank=lora_rank)
    mask = gradient_mask(method, shared, plan, start)
    given = {"start": start, "reference": start, "plan": plan, "shared": shared, "gradient_mask": mask}
    return method.begin(replace(any_job(), **given))


@cache
def any_job() -> ClientJob:
    return tiny.build().job(0, 4)


def test_a_round_by_hand() -> None:
    """A client of rank 1 and one of rank 2, uniform weights, a server of SGD at rate 1.

    The first is sent A[0], B[:, 0] and the head, and moves each of them by -2; the second moves everything by +1. In
    the mean of the updates, 2 and -1 for what both have, half of -1 for what only the second has.
    """
    method = HetLoRA(lora_rank=2, tiers=2)
    state = server()
    shared = tiny.shared_of(state)
    plans = [Plan(lora_rank=1), Plan(lora_rank=2)]
    supports = [method.upload_support(shared, plan) for plan in plans]
    assert supports[1] is None
    assert supports[0] is not None
    assert supports[0].tolist() == SLICE
    download = method.download(state, shared, plans[0]).values.within(supports[0])
    assert download.values.tolist() == [1, 2, 5, 7, 9]

    aggregate = method.aggregate(state, shared)
    low = SparseVector.at(vector(A, B, HEAD), torch.tensor(SLICE)).to_dense()
    jobs = [job_of(method, 1, low), job_of(method, 2, vector(A, B, HEAD))]
    assert jobs[0].gradient_mask is not None
    assert jobs[0].gradient_mask.tolist() == [1, 1, 0, 0, 1, 0, 1, 0, 1]
    for job, by in zip(jobs, (-2 * jobs[0].gradient_mask, 1.0), strict=True):
        upload = method.upload(job, job.start + by)
        assert upload.update is not None
        assert upload.update.count == (5 if job.plan.lora_rank == 1 else 9)
        assert (upload.beside, upload.state) == ((), {})
        aggregate.add(tiny.arrived(upload.update, plan=job.plan))
    update = aggregate.finish()
    assert update is not None
    assert update.tolist() == [0.5, 0.5, -0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5]
    method.step(state, update)
    views = method.views(state)
    assert list(views) == ["full", "rank1"]
    assert views["full"].tolist() == [0.5, 1.5, 3.5, 4.5, 4.5, 6.5, 6.5, 8.5, 8.5]
    assert views["rank1"].tolist() == [0.5, 1.5, 0, 0, 4.5, 0, 6.5, 0, 8.5]


def test_weights_by_sparsity_by_hand() -> None:
    """Weights are the norms of what was trained: B A = [[3, 4], [0, 0]], norm 5, against 2 I at rank 2, norm 8 ** 0.5.

    The head moved by -1 and by -3; it has the same weights.
    """
    method = HetLoRA(lora_rank=2, tiers=2, aggregation="sparsity")
    state = server()
    aggregate = method.aggregate(state, tiny.shared_of(state))
    trained = [vector([[3, 4], [0, 0]], [[1, 0], [0, 0]], [10]), vector([[2, 0], [0, 2]], [[1, 0], [0, 1]], [12])]
    started = [SparseVector.at(vector(A, B, HEAD), torch.tensor(SLICE)).to_dense(), vector(A, B, HEAD)]
    for lora_rank, start, end in zip((1, 2), started, trained, strict=True):
        update = SparseVector.dense(start - end)
        aggregate.add(Arrived(0, Plan(lora_rank=lora_rank), update, (), 7, 100.0))  # whose own weight has no say
    found = aggregate.finish()
    assert found is not None
    weights = np.array([5, math.sqrt(8)]) / (5 + math.sqrt(8))
    expected = sum(w * (s - t).numpy() for w, s, t in zip(weights, started, trained, strict=True))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-14)
    assert found[-1].item() == pytest.approx(-weights[0] - 3 * weights[1])


@pytest.mark.parametrize(("lora_rank", "decay", "g"), [(4, 0.99, 3), (4, 0.5, 2), (4, 0.74, 2), (1, 0.5, 1)])
def test_the_tail_is_what_the_floor_leaves_out(lora_rank: int, decay: float, g: int) -> None:
    """Against numpy: the sum over modules of ||B[:, g:]|| ||A[g:, :]||, of a client of the rank; and its gradient."""
    method = HetLoRA(lora_rank=4, tiers=2, rank_decay=decay, tail_penalty=0.5)
    state = factored.server({"one": (3, 5), "two": (2, 2)}, lora_rank=4)
    job = job_of(method, lora_rank, state.vector.detach(), state.layout)
    mask = 1 if job.gradient_mask is None else job.gradient_mask
    held = (job.start * mask).requires_grad_()
    pairs = factored.factors(state, held.detach()).values()
    expected = 0.5 * sum(np.linalg.norm(b[:, g:]) * np.linalg.norm(a[g:]) for a, b in pairs)
    penalty = method.penalty()
    assert penalty is not None
    found = penalty(held, held, job.penalty_tensors)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(found, held)
    together = {name: tensor.expand(2, *tensor.shape) for name, tensor in job.penalty_tensors.items()}
    twice = torch.stack([held.detach()] * 2)
    many = torch.func.vmap(torch.func.grad(penalty))(twice, twice, together)
    torch.testing.assert_close(many[1], gradient, rtol=1e-12, atol=1e-15)
    if g == lora_rank:
        assert not gradient.any()
        return
    a, b = factored.factors(state, held.detach())["one"]
    by_hand = 0.5 * np.linalg.norm(a[g:]) * b[:, g:] / np.linalg.norm(b[:, g:])
    pair = state.layout.pairs[0]
    np.testing.assert_allclose(state.layout.views(gradient)[pair.b.name].numpy()[:, g:], by_hand, rtol=1e-12)
    assert not state.layout.views(gradient)[pair.b.name][:, :g].any()


def test_a_tail_of_zeros_has_no_gradient() -> None:
    """B starts at zero, where a root has none; what is not a number would spread."""
    method = HetLoRA(lora_rank=2, tiers=2, rank_decay=0.5, tail_penalty=1.0)
    job = job_of(method, 2, vector(A, [[0, 0], [0, 0]], HEAD))
    penalty = method.penalty()
    assert penalty is not None
    gradient = torch.func.grad(penalty)(job.start, job.start, job.penalty_tensors)
    assert gradient.tolist() == [0.0] * 9


@pytest.mark.parametrize(("grown", "rank"), [(0.5, 1), (1.0, 2), (2.0, 2)])
def test_a_client_prunes_itself_where_its_tail_shrank(grown: float, rank: int) -> None:
    """It tells the rank in 2 bytes, keeps it, and works on its slice from the next round on."""
    method = HetLoRA(lora_rank=2, tiers=1, rank_decay=0.5)
    state = server()
    job = job_of(method, 2, vector(A, B, HEAD))
    assert tail_size(job.start, job.penalty_tensors).item() == pytest.approx(5 * 10)  # |(3, 4)| |(6, 8)|
    upload = method.upload(job, vector([A[0], [grown * x for x in A[1]]], B, HEAD))
    assert upload.beside == (bytes([rank, 0]),)
    assert upload.update is not None
    assert upload.update.count == 9  # of the rank that it received, as both ends know that
    state.clients[3] = ClientState(1, upload.state)
    assert method.plan(state, 2, 3) == Plan(lora_rank=rank)
    assert method.plan(state, 2, 4) == Plan(lora_rank=2)


def test_nobody_prunes_below_rank_one() -> None:
    method = HetLoRA(lora_rank=2, tiers=1, rank_decay=0.1)
    job = job_of(method, 1, vector(A, B, HEAD))
    upload = method.upload(job, torch.zeros(9, dtype=torch.float64))
    assert upload.beside == (b"\1\0",)


@pytest.mark.parametrize("server", [ServerOptions("adam", lr=0.05), ServerOptions("sgd", momentum=0.9)])
def test_equal_ranks_are_lora_under_the_same_server_optimiser(server: ServerOptions) -> None:
    """Bit for bit, in float32, with the bytes."""
    *_, lora = rounds(LoRA(lora_rank=2), 3, dtype=torch.float32, server=server)
    *_, het = rounds(HetLoRA(lora_rank=2, tiers=1), 3, dtype=torch.float32, server=server)
    assert torch.equal(lora.state.vector, het.state.vector)
    assert lora.entries == het.entries


def test_clients_stay_within_their_slices() -> None:
    """From start to end of training, and in what travels; the server's other ranks learn from higher tiers."""
    method = HetLoRA(lora_rank=4, tiers=2)
    seen = set()
    for played in rounds(method, 3, dtype=torch.float32):
        for done in played.trained:
            places = done.job.layout
            beyond = torch.ones(places.length, dtype=torch.bool)
            support = method.upload_support(done.job.shared, done.job.plan)
            beyond[slice(None) if support is None else support] = False
            assert not done.job.start[beyond].any()
            assert not done.vector[beyond].any()
            seen.add((done.job.plan.lora_rank, int((~beyond).sum())))
        for entry in played.entries:
            values = 51 + 192 * played.of(entry.client).job.plan.lora_rank
            assert entry.upload_bytes == entry.download_bytes == HEADER_BYTES + 4 * values
        assert set(played.state.clients) <= {0, 1, 2, 3, 4}
    assert seen == {(1, 51 + 192), (4, 51 + 4 * 192)}
    assert played.measures["product_error"] > 1e-3  # slices of different ranks are no mean of products


def test_both_trainers_agree_on_pruning_clients() -> None:
    """With a penalty of each client's own, over rounds in which ranks fall."""
    method = HetLoRA(lora_rank=4, tiers=2, rank_decay=0.7, tail_penalty=0.3, aggregation="sparsity")
    ends = [list(rounds(method, 4, slots=slots))[-1] for slots in (0, 2)]
    ranks = [{client: int(held.tensors[RANK]) for client, held in end.state.clients.items()} for end in ends]
    assert ranks[0] == ranks[1]
    assert set(ranks[0].values()) - {1, 4}
    torch.testing.assert_close(ends[0].state.vector, ends[1].state.vector, rtol=0, atol=1e-9)
    without = list(rounds(replace(method, tail_penalty=0.0), 4))[-1]
    assert not torch.equal(without.state.vector, ends[0].state.vector)


def test_its_label_says_what_is_not_as_in_the_comparison() -> None:
    assert HetLoRA().label == "HetLoRA ranks 1, 4, 16"
    pruned = HetLoRA(tiers=5, aggregation="sparsity", rank_decay=0.99)
    assert pruned.label == "HetLoRA ranks 1, 2, 4, 8, 16, by sparsity, pruned by 0.99"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tiers": 6}, "method.tiers 6 with method.tier_base 2 needs a LoRA rank of 32 at the server, got 16"),
        ({"rank_decay": 0.0}, r"method.rank_decay is 0.0; expected a number in \(0, 1\]"),
        ({"rank_decay": 1.5}, r"method.rank_decay is 1.5; expected a number in \(0, 1\]"),
        ({"rank_decay": 0.9, "tail_penalty": -1.0}, "method.tail_penalty is -1.0; expected 0 or more"),
        ({"tail_penalty": 0.1}, "method.tail_penalty is 0.1; expected 0 or more, and 0 at a method.rank_decay of 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        HetLoRA(**options)  # type: ignore[arg-type]


def test_ranks_of_a_backbone_without_lora_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"method\.tiers, the clients' ranks, needs LoRA's two factors"):
        HetLoRA().check(tiny.layout_of(5, 3))
