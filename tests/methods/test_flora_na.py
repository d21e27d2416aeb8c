from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigurationError
from fedsim.factors import Combined, Stack
from methods.fed_it import FedIT
from methods.flora_na import FLoRANA, coefficients
from tests import factored
from tests.oracle import products
from tests.short_run import short_run

SHAPES = {"wide": (5, 7), "tall": (6, 4)}


def stack_of(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> Stack:
    return Stack("any", torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(w))


def random_stack(seed: int, clients: int, lora_rank: int, drift: float, shared: bool) -> Stack:
    """Clients that went off from common factors: each on its own, or all along one direction, by different amounts."""
    random = np.random.default_rng(seed)
    sizes = ((lora_rank, 7), (6, lora_rank))
    common = [random.standard_normal(size) for size in sizes]
    direction = [random.standard_normal(size) for size in sizes]
    amount = random.standard_normal(clients)
    a, b = (
        np.stack([c + drift * (by * d if shared else random.standard_normal(c.shape)) for by in amount])
        for c, d in zip(common, direction, strict=True)
    )
    w = random.random(clients) + 0.1
    return stack_of(a, b, w / w.sum())


def square(stack: Stack, p: torch.Tensor, q: torch.Tensor) -> float:
    """The objective, from the matrices."""
    a, b = (np.tensordot(c.numpy(), f.numpy(), 1) for c, f in ((p, stack.a), (q, stack.b)))
    return float(np.linalg.norm(target_of(stack) - b @ a) ** 2)


def target_of(stack: Stack) -> np.ndarray:
    return products.mean_product(list(stack.a.numpy()), list(stack.b.numpy()), stack.weights.numpy())


def test_a_round_by_hand() -> None:
    """A of 1 and 3, B of 2 and 4: the mean of the products is 7, and a product of numbers can be just that.

    The mean factors are 2 and 3, so the gauge asks for B / A = 3 / 2: A = sqrt(14 / 3), B = sqrt(21 / 2).
    """
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    factored.run_round(FLoRANA(), state, factored.given(state, a=[1, 3], b=[2, 4], examples=[1, 3]))
    a, b = factored.factors(state)["one"]
    assert (a.item(), b.item()) == pytest.approx(((14 / 3) ** 0.5, (21 / 2) ** 0.5), rel=1e-12)
    assert state.measures["product_error"] < 1e-7


def test_a_sweep_by_hand() -> None:
    """A of (1, 0) and (1, 0), B of 1 and 3: A is the mean whatever p is, and q stays where it is, as both fit.

    Their product (2, 0) is the mean of the products already.
    """
    stack = stack_of(np.array([[[1.0, 0]], [[1.0, 0]]]), np.array([[[1.0]], [[3.0]]]), np.array([0.5, 0.5]))
    p, q = coefficients([stack], 3)
    assert p.tolist() == pytest.approx([0.5, 0.5], abs=1e-14)
    assert q.tolist() == pytest.approx([0.5, 0.5], abs=1e-14)


stacks = st.builds(
    random_stack, st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.floats(0.01, 2), st.booleans()
)


@settings(deadline=None, max_examples=30)
@given(stacks)
def test_the_objective_falls_from_fedit_towards_the_best_of_its_rank(stack: Stack) -> None:
    target = target_of(stack)
    whole = np.linalg.norm(target) ** 2
    values = [square(stack, *coefficients([stack], sweeps)) for sweeps in range(5)]
    assert values[0] == pytest.approx(square(stack, stack.weights, stack.weights), abs=1e-12 * whole)
    assert all(after <= before + 1e-12 * whole for before, after in pairwise(values))
    best = np.linalg.norm(target - products.truncated(target, stack.a.shape[1])) ** 2
    assert values[-1] >= best - 1e-12 * whole


@pytest.mark.parametrize("seed", range(4))
def test_it_gains_most_where_clients_drift_along_one_direction(seed: int) -> None:
    """By different amounts: nearly all of FedIT's squared error goes, and less than three quarters where each is off
    on its own, though five clients give these small modules ten coefficients."""
    gained = {}
    for shared in (True, False):
        stack = random_stack(seed, 5, 2, 4.0, shared)
        gained[shared] = square(stack, *coefficients([stack], 5)) / square(stack, stack.weights, stack.weights)
    assert gained[True] < 0.1
    assert 0.25 < gained[False] < 1


@pytest.mark.parametrize(("drift", "tolerance"), [(0.5, 1e-9), (1e-3, 1e-6)])
@pytest.mark.parametrize("shared", [True, False])
def test_the_coefficients_are_those_of_the_plain_twin(shared: bool, drift: float, tolerance: float) -> None:
    """Which solves for all entries of the product at once. Clients that hardly drifted are told apart none the less."""
    stack = random_stack(8, 4, 2, drift, shared)
    p, q = coefficients([stack], 3)
    expected_p, expected_q = products.flora_na(
        list(stack.a.numpy()), list(stack.b.numpy()), stack.weights.numpy(), sweeps=3
    )
    np.testing.assert_allclose(p.numpy(), expected_p, rtol=0, atol=tolerance)
    np.testing.assert_allclose(q.numpy(), expected_q, rtol=0, atol=tolerance)
    assert np.abs(expected_p - expected_p.mean()).max() > 1e-2


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("scope", ["module", "model"])
def test_clients_that_are_alike_keep_their_weights(weighting: str, scope: str) -> None:
    state = factored.server(SHAPES, lora_rank=2)
    (one,) = factored.drifted(state, 1)
    clients = [factored.Client(one.vector, examples) for examples in (1, 2, 5)]
    weights = factored.weights_of(clients, weighting)
    stacks = [
        stack_of(*(np.stack(own) for own in factored.of_clients(state, clients, layer)), weights) for layer in SHAPES
    ]
    for solved in [coefficients(stacks, 5)] if scope == "model" else [coefficients([stack], 5) for stack in stacks]:
        for found in solved:
            np.testing.assert_allclose(found.numpy(), weights, rtol=0, atol=1e-12)
    factored.run_round(FLoRANA(weighting=weighting, scope=scope), state, clients)  # type: ignore[arg-type]
    np.testing.assert_allclose(state.vector.detach().numpy(), one.vector.numpy(), rtol=0, atol=1e-12)


def test_the_gauge_keeps_the_sizes_of_the_mean_factors_in_proportion() -> None:
    stack = random_stack(5, 4, 2, 1.0, True)
    p, q = coefficients([stack], 5)
    a, b = (torch.tensordot(c, f, 1).norm() for c, f in ((p, stack.a), (q, stack.b)))
    mean = stack.mean()
    assert float(b / a) == pytest.approx(float(mean.b.norm() / mean.a.norm()), rel=1e-9)


def test_one_pair_for_the_model_minimises_the_sum_over_modules() -> None:
    """It is no better than a pair for each, and better than either module's pair for both."""
    state = factored.server(SHAPES, lora_rank=2)
    clients = factored.drifted(state, 3, by=1.0)
    w = factored.weights_of(clients, "uniform")
    own = [stack_of(*(np.stack(f) for f in factored.of_clients(state, clients, layer)), w) for layer in SHAPES]

    def total(*pairs: tuple[torch.Tensor, torch.Tensor]) -> float:
        return sum(square(stack, *pair) for stack, pair in zip(own, pairs, strict=True))

    one, each = coefficients(own, 50), [coefficients([stack], 50) for stack in own]
    assert total(*each) <= total(one, one)
    assert total(one, one) < min(total(pair, pair) for pair in [*each, (own[0].weights, own[0].weights)])
    errors = {}
    for scope in ("module", "model"):
        state = factored.server(SHAPES, lora_rank=2)
        factored.run_round(FLoRANA(scope=scope, sweeps=50), state, clients)  # type: ignore[arg-type]
        errors[scope] = state.measures["product_error"]
    whole = sum(np.linalg.norm(target_of(stack)) ** 2 for stack in own)
    assert errors["model"] == pytest.approx((total(one, one) / whole) ** 0.5, rel=1e-6)
    assert errors["module"] == pytest.approx((total(*each) / whole) ** 0.5, rel=1e-6)


def test_a_client_without_b_and_means_of_zero_leave_no_nan() -> None:
    """B of 1 and -1 with A alike: the mean B and the mean of the products are zero, and there is no gauge."""
    stack = stack_of(np.ones((2, 1, 3)), np.array([[[1.0]], [[-1.0]]]), np.array([0.5, 0.5]))
    p, q = coefficients([stack], 5)
    assert q.tolist() == pytest.approx([0.5, 0.5], abs=1e-12)
    assert p.isfinite().all()
    made = Combined(torch.tensordot(p, stack.a, 1), torch.tensordot(q, stack.b, 1))
    assert float((made.b @ made.a).abs().max()) < 1e-12


def test_its_ledger_is_fedits(tmp_path: Path) -> None:
    ends = {}
    for method in (FLoRANA(lora_rank=2), FedIT(lora_rank=2)):
        folder = tmp_path / method.label
        folder.mkdir()
        ends[method.label] = short_run(method, folder)
    assert ends["FLoRANA"].ledger == ends["FedIT"].ledger
    assert all(int(row["upload_bytes"]) > 4 * len(ends["FedIT"].result.vector) for row in ends["FedIT"].ledger)
    assert ends["FLoRANA"].metrics != ends["FedIT"].metrics


def test_no_sweep_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"method\.sweeps is 0"):
        FLoRANA(sweeps=0)
