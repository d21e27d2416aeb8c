"""What is measured of an aggregation, and that it is measured without a matrix of D_out by D_in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.factors import Combined, FactorAggregate, Stack, assign, weight_of
from fedsim.method import Arrived, Plan, Shared
from fedsim.sparse import SparseVector
from fedsim.tiers import rank_slice
from methods.fed_it import FedIT
from tests import factored
from tests.oracle import products

SHAPES = {"wide": (5, 7), "tall": (6, 4), "square": (5, 5)}


def stack_of(seed: int, clients: int = 3, lora_rank: int = 2, shape: tuple[int, int] = (6, 5)) -> Stack:
    random = np.random.default_rng(seed)
    a, b = (
        random.standard_normal((clients, lora_rank, shape[1])),
        random.standard_normal((clients, shape[0], lora_rank)),
    )
    weights = random.random(clients) + 0.1
    return Stack("any", *(torch.from_numpy(array) for array in (a, b, weights / weights.sum())))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_the_distance_is_that_of_the_matrices(seed: int, clients: int, lora_rank: int, merges: bool) -> None:
    stack = stack_of(seed, clients, lora_rank)
    random = np.random.default_rng(seed + 1)
    a, b, merged = (random.standard_normal(shape) for shape in ((lora_rank, 5), (6, lora_rank), (6, 5)))
    target = sum(
        w * right @ left for w, right, left in zip(*(t.numpy() for t in (stack.weights, stack.b, stack.a)), strict=True)
    )
    made = Combined(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(merged) if merges else None)
    off, whole = stack.distance(made)
    assert off == pytest.approx(np.linalg.norm(target - b @ a - (merged if merges else 0)) ** 2, rel=1e-9)
    assert whole == pytest.approx(np.linalg.norm(target) ** 2, rel=1e-9)
    right, left = stack.concatenated()
    np.testing.assert_allclose((left @ right).numpy(), target, rtol=0, atol=1e-12)


def test_what_comes_out_exactly_is_off_by_nothing() -> None:
    stack = stack_of(0, clients=1)
    off, whole = stack.distance(stack.mean())
    assert 0 <= off <= 1e-14 * whole


@pytest.mark.parametrize("weighting", ["uniform", "examples", None])
def test_the_error_is_over_all_modules_together(weighting: str | None) -> None:
    """And the head is the weighted mean; without a weighting the weight is the upload's own."""
    state = factored.server(SHAPES, lora_rank=2)
    clients = factored.drifted(state, 4)
    weights = factored.weights_of(clients, weighting or "uniform")
    own = [factored.of_clients(state, clients, layer) for layer in SHAPES]
    targets = [products.mean_product(a, b, weights) for a, b in own]
    means = [products.mean_of(b, weights) @ products.mean_of(a, weights) for a, b in own]
    aggregate = FactorAggregate(state, weighting)  # type: ignore[arg-type]
    for upload in factored.arrived(state, clients):
        aggregate.add(upload)
    assign(state, aggregate.finish())  # type: ignore[arg-type]
    off = sum(np.linalg.norm(t - m) ** 2 for t, m in zip(targets, means, strict=True))
    whole = sum(np.linalg.norm(t) ** 2 for t in targets)
    assert state.measures == {"product_error": pytest.approx((off / whole) ** 0.5, rel=1e-9)}
    for (a, b), layer in zip(own, SHAPES, strict=True):
        np.testing.assert_allclose(factored.factors(state)[layer][0], products.mean_of(a, weights), atol=1e-14)
        np.testing.assert_allclose(factored.factors(state)[layer][1], products.mean_of(b, weights), atol=1e-14)
    heads = [client.vector[state.layout.where(["head"])].numpy() for client in clients]
    np.testing.assert_allclose(
        state.vector.detach()[state.layout.where(["head"])].numpy(), products.mean_of(heads, weights), atol=1e-14
    )


def test_the_weight_of_an_upload() -> None:
    upload = Arrived(0, Plan(), SparseVector.dense(torch.zeros(1)), (), 7, 0.5)
    assert (weight_of(upload, "uniform"), weight_of(upload, "examples"), weight_of(upload, None)) == (1.0, 7.0, 0.5)


def test_nothing_that_arrived_is_no_step_and_no_measure() -> None:
    state = factored.server(SHAPES, lora_rank=2)
    assert FactorAggregate(state, "examples").finish() is None
    assert state.measures == {}


def test_clients_whose_b_is_zero_have_no_error() -> None:
    """Round 1 of clients that took no step: there is nothing to be off from."""
    state = factored.server(SHAPES, lora_rank=2)
    views = state.layout.views(state.vector.data)
    for pair in state.layout.pairs:
        views[pair.b.name].zero_()
    before = state.vector.detach().clone()
    factored.run_round(FedIT(), state, [factored.Client(before.clone()) for _ in range(2)])
    assert state.measures == {}
    assert torch.equal(state.vector.detach(), before)


def test_a_frozen_a_is_read_from_the_model() -> None:
    """As FFA-LoRA has it: the mean of B then loses nothing, and A is no part of P."""
    state = factored.server({"one": (5, 7)}, lora_rank=2)
    a, _ = factored.factors(state)["one"]
    (place,) = (e for e in state.layout.entries if e.segment == "B")
    only_b = replace(state.layout, entries=(replace(place, start=0),))
    state.layout, state.vector = only_b, torch.nn.Parameter(state.vector.detach()[place.start : place.stop].clone())
    seen: list[Stack] = []

    def look(stack: Stack) -> Combined:
        seen.append(stack)
        return stack.mean()

    aggregate = FactorAggregate(state, "uniform", look)
    for by in (0.1, -0.4):
        update = SparseVector.dense(torch.full_like(state.vector.data, by))
        aggregate.add(Arrived(0, Plan(), update, (), 1, 1.0))
    update = aggregate.finish()
    assert update is not None
    np.testing.assert_allclose(update.numpy(), -0.15, atol=1e-14)
    assert all(np.array_equal(client.numpy(), a) for client in seen[0].a)
    assert state.measures["product_error"] <= 1e-7


def test_a_client_of_a_smaller_rank_started_from_its_slice() -> None:
    """It sends its slice, and the rest of its factors is zero, not the server's."""
    state = factored.server({"one": (5, 7)}, lora_rank=3)
    clients = factored.drifted(state, 2)
    clients[1].lora_rank = 1
    inside = torch.zeros_like(clients[1].vector, dtype=torch.bool)
    inside[rank_slice(state.layout, 1)] = True
    clients[1].vector = clients[1].vector * inside
    (a_0, a_1), (b_0, b_1) = factored.of_clients(state, clients, "one")
    assert not a_1[1:].any()
    assert not b_1[:, 1:].any()
    factored.run_round(FedIT(weighting="uniform"), state, clients)
    a, b = factored.factors(state)["one"]
    np.testing.assert_allclose(a, (a_0 + a_1) / 2, atol=1e-14)
    np.testing.assert_allclose(b, (b_0 + b_1) / 2, atol=1e-14)
    error = products.relative_error([a_0, a_1], [b_0, b_1], np.array([0.5, 0.5]), b @ a)
    assert state.measures["product_error"] == pytest.approx(error, rel=1e-9)


def test_a_survey_sees_every_module_before_any_is_combined() -> None:
    state = factored.server(SHAPES, lora_rank=2)
    log: list[str] = []

    def survey(stacks: object) -> object:
        log.extend(f"see {stack.layer}" for stack in stacks)  # type: ignore[attr-defined]

        def combine(stack: Stack) -> Combined:
            log.append(stack.layer)
            return stack.mean()

        return combine

    aggregate = FactorAggregate(state, "uniform", survey=survey)  # type: ignore[arg-type]
    for upload in factored.arrived(state, factored.drifted(state, 2)):
        aggregate.add(upload)
    aggregate.finish()
    assert log == ["see wide", "see tall", "see square", "wide", "tall", "square"]


def test_the_error_is_that_of_what_p_holds() -> None:
    """In float32 the mean of one client is what it sent but for rounding, and so is what is measured."""
    state = factored.server(SHAPES, lora_rank=2, dtype=torch.float32)
    aggregate = FedIT().aggregate(state, Shared(1, 0, state.layout, state.initial))
    for upload in factored.arrived(state, factored.drifted(state, 1)):
        aggregate.add(upload)
    aggregate.finish()
    assert state.measures["product_error"] < 3e-7
