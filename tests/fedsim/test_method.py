from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.jobs import gradient_mask
from fedsim.method import Arrangement, ClientState, Download, Mean, Plan, Shared
from fedsim.options import ClientOptions, RunOptions
from fedsim.sparse import SparseVector
from methods.lora import LoRA
from tests import tiny

FLOATS = st.floats(-100, 100)


def sparse(values: list[float], indices: list[int], length: int = 4) -> SparseVector:
    return SparseVector(length, torch.tensor(values, dtype=torch.float64), torch.tensor(indices, dtype=torch.int64))


def dense(*values: float) -> SparseVector:
    return SparseVector.dense(torch.tensor(values, dtype=torch.float64))


def mean_of(*uploads: tuple[SparseVector, float]) -> list[float] | None:
    mean = Mean(4, torch.float64, tiny.CPU)
    for upload, weight in uploads:
        mean.add(tiny.arrived(upload, weight))
    result = mean.finish()
    return None if result is None else result.tolist()


def test_every_client_downloads_all_of_p_by_default() -> None:
    state = tiny.server_state([1.0, -2.0, 3.0])
    plan, shared = LoRA().plan(state, 1, 7), tiny.shared_of(state)
    assert plan == Plan(1.0, 1.0, 0, 0)
    assert LoRA().prepare(state, 1) == {}
    assert LoRA().download_support(shared, plan) is None
    download = LoRA().download(state, shared, plan)
    assert download.values.indices is None
    assert download.values.values.tolist() == [1.0, -2.0, 3.0]
    assert not download.values.values.requires_grad
    assert download.beside == ()
    assert LoRA().start(shared, download, ClientState()).tolist() == [1.0, -2.0, 3.0]


def test_an_update_is_positive_where_the_client_descended() -> None:
    """The server's optimiser subtracts it, as a gradient (Appendix A)."""
    built = tiny.build()
    job = built.job(0, 4, reference=built.start() + 2)
    upload = LoRA().upload(job, built.start())
    assert upload.update is not None
    assert upload.update.indices is None
    assert (upload.beside, upload.state) == ((), {})
    torch.testing.assert_close(upload.update.values, torch.full_like(built.vector, 2.0), rtol=0, atol=1e-5)


def test_the_servers_step_goes_against_the_update() -> None:
    state = tiny.server_state([1.0, -2.0], optimizer="sgd", lr=0.5)
    LoRA().step(state, torch.tensor([2.0, -4.0], dtype=torch.float64))
    assert state.vector.tolist() == [0.0, 0.0]


def test_the_default_job_penalty_and_view_are_plain() -> None:
    built = tiny.build()
    job = built.job(0, 4)
    assert LoRA().begin(job) is job
    assert LoRA().penalty() is None
    state = tiny.server_state([1.0, 2.0])
    assert {name: view.tolist() for name, view in LoRA().views(state).items()} == {"full": [1.0, 2.0]}
    assert LoRA().label == "LoRA"


@dataclass
class Half(LoRA):
    """Both ends know that only some entries train and travel."""

    places: tuple[int, ...] = (1, 3)

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        return torch.tensor(self.places)


def test_a_support_is_what_moves_and_what_travels_both_ways() -> None:
    built = tiny.build(Half(lora_rank=2, places=(1, 3, 400)))
    method, shared = built.method, built.shared()
    down = method.download_support(shared, Plan())
    assert down is not None
    assert down.tolist() == [1, 3, 400]
    mask = gradient_mask(method, shared, Plan(), built.vector)
    assert mask is not None
    assert mask.dtype == built.vector.dtype
    assert mask.nonzero().squeeze(1).tolist() == [1, 3, 400]
    assert set(mask.tolist()) == {0.0, 1.0}
    job = built.job(0, 4)
    update = method.upload(job, job.start - 2 * torch.ones_like(job.start)).update
    assert update is not None
    assert update.indices is not None
    assert update.indices.tolist() == [1, 3, 400]
    torch.testing.assert_close(update.values, torch.full((3,), 2.0), rtol=0, atol=1e-6)


def test_what_was_not_sent_is_zero_where_a_client_starts() -> None:
    state = tiny.server_state([1.0, 2.0, 3.0, 4.0])
    received = Download(SparseVector.at(state.vector.detach(), torch.tensor([1, 3])))
    assert Half().start(tiny.shared_of(state), received, ClientState()).tolist() == [0.0, 2.0, 0.0, 4.0]


def test_by_default_nobody_has_parts_of_its_own_or_stages() -> None:
    state = tiny.server_state([1.0, 2.0])
    method = LoRA()
    vector = state.vector.detach()
    assert method.personal(tiny.shared_of(state), vector, ClientState(1, {"own": vector + 1})) is vector
    assert method.segments(1) is None
    assert not method.personal_parts
    assert not method.assigns
    arrangement = Arrangement(tiny.partition([4]), ClientOptions(), RunOptions())
    assert method.arrange(arrangement) is arrangement


@pytest.mark.parametrize("targets", ["query, value", ["query", "value"]])
def test_setup_adapts_the_roles_and_the_head(targets: str | list[str]) -> None:
    built = tiny.build(LoRA(lora_rank=3, lora_targets=targets))
    assert built.parameters.layout.segments() == {"A": 4 * 48, "B": 4 * 48, "head": 51}


def test_setup_depends_on_its_seed_alone() -> None:
    left, right = tiny.build(), tiny.build()
    assert torch.equal(left.vector, right.vector)


def test_the_mean_is_uniform_under_equal_weights() -> None:
    assert mean_of((dense(1, 2, 3, 4), 1), (dense(3, 2, 1, -4), 1)) == [2, 2, 2, 0]


def test_the_mean_weighs_by_examples_where_asked() -> None:
    assert mean_of((dense(1, 2, 3, 4), 30), (dense(5, 2, -1, 0), 10)) == [2, 2, 2, 3]


def test_what_was_not_sent_counts_as_zero() -> None:
    """Algorithm 1, line 20: the mean runs over all clients of the cohort, not over those that sent the entry."""
    assert mean_of((sparse([4, 8], [0, 2]), 1), (sparse([2], [0]), 1)) == [3, 0, 4, 0]
    assert mean_of((sparse([4], [3]), 3), (dense(1, 1, 1, 0), 1)) == [0.25, 0.25, 0.25, 3]


def test_a_round_without_uploads_has_no_update() -> None:
    assert mean_of() is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.dictionaries(st.integers(0, 3), FLOATS), st.integers(1, 50)), min_size=1, max_size=6))
def test_the_mean_equals_the_weighted_mean_of_dense_vectors(clients: list[tuple[dict[int, float], int]]) -> None:
    uploads = [(sparse([c[i] for i in sorted(c)], sorted(c)), float(weight)) for c, weight in clients]
    total = sum(weight for _, weight in clients)
    expected = [sum(c.get(i, 0.0) * weight for c, weight in clients) / total for i in range(4)]
    assert mean_of(*uploads) == pytest.approx(expected, abs=1e-10)


def test_the_mean_leaves_the_uploads_alone() -> None:
    upload = dense(1, 2, 3, 4)
    mean = Mean(4, torch.float64, tiny.CPU)
    mean.add(tiny.arrived(upload, 2))
    mean.add(tiny.arrived(upload, 2))
    assert upload.values.tolist() == [1, 2, 3, 4]


def test_half_values_are_added_in_the_servers_precision() -> None:
    mean = Mean(1, torch.float32, tiny.CPU)
    for value in (1.0, 2.0**-12):
        mean.add(tiny.arrived(SparseVector.dense(torch.tensor([value], dtype=torch.float16))))
    assert mean.finish() == (1 + 2.0**-12) / 2
