import numpy as np
import pytest

from fedsim.errors import ConfigurationError
from methods.fed_it import FedIT
from methods.lora_fair import LoRAFAIR
from tests import factored
from tests.oracle import products

SHAPES = {"wide": (5, 7), "tall": (6, 4)}


def test_a_round_by_hand() -> None:
    """A of 1 and 3, B of 2 and 4: the means 2 and 3 have the product 6, and the mean of the products is 7.

    With lambda 1 the correction is (7 - 6) 2 / (4 + 1) = 0.4, so B = 3.4 and the error is 0.2 / 7.
    """
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    method = LoRAFAIR(weighting="uniform", regularisation=1.0)
    factored.run_round(method, state, factored.given(state, a=[1, 3], b=[2, 4], examples=[1, 3]))
    a, b = factored.factors(state)["one"]
    assert (a.item(), b.item()) == pytest.approx((2, 3.4), abs=1e-13)
    assert state.measures["product_error"] == pytest.approx(0.2 / 7, rel=1e-9)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("regularisation", [0.0, 0.01, 10.0])
def test_it_is_the_least_squares_solution_of_the_plain_twin(weighting: str, regularisation: float) -> None:
    state = factored.server(SHAPES, lora_rank=2)
    clients = factored.drifted(state, 3, by=1.0)
    own = {layer: factored.of_clients(state, clients, layer) for layer in SHAPES}
    weights = factored.weights_of(clients, weighting)
    method = LoRAFAIR(weighting=weighting, regularisation=regularisation)  # type: ignore[arg-type]
    factored.run_round(method, state, clients)
    for layer, (a, b) in own.items():
        made_a, made_b = factored.factors(state)[layer]
        np.testing.assert_allclose(made_a, products.mean_of(a, weights), rtol=0, atol=1e-12)
        np.testing.assert_allclose(made_b, products.corrected_b(a, b, weights, regularisation), rtol=0, atol=1e-9)


def test_the_error_falls_with_the_regularisation_and_from_fedits() -> None:
    errors = []
    for method in (LoRAFAIR(regularisation=0), LoRAFAIR(), LoRAFAIR(regularisation=5.0), FedIT()):
        state = factored.server(SHAPES, lora_rank=2)
        factored.run_round(method, state, factored.drifted(state, 4, by=1.0))
        errors.append(state.measures["product_error"])
    assert errors == sorted(errors)
    assert len(set(errors)) == 4


def test_an_a_of_too_small_a_rank_is_no_trouble_without_regularisation() -> None:
    """Rank 5 for a module of 4 inputs: A A^T cannot be inverted."""
    state = factored.server({"one": (6, 4)}, lora_rank=5)
    clients = factored.drifted(state, 3, by=1.0)
    own = factored.of_clients(state, clients, "one")
    factored.run_round(LoRAFAIR(regularisation=0.0), state, clients)
    a, b = factored.factors(state)["one"]
    target = products.mean_product(*own, factored.weights_of(clients, "examples"))
    np.testing.assert_allclose(b @ a, target, rtol=0, atol=1e-9)


def test_a_negative_regularisation_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"method\.regularisation is -1"):
        LoRAFAIR(regularisation=-1)
