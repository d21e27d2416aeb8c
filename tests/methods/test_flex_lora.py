import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigurationError
from fedsim.factors import Stack
from fedsim.method import Plan
from fedsim.tiers import rank_slice
from methods.flex_lora import FlexLoRA, truncated
from methods.flora_stacking import FLoRAStacking
from tests import factored, tiny
from tests.oracle import products

SHAPES = {"wide": (5, 7), "tall": (6, 4)}


def stack_of(seed: int, clients: int, lora_rank: int, shape: tuple[int, int] = (6, 5)) -> Stack:
    random = np.random.default_rng(seed)
    a, b = (
        random.standard_normal((clients, lora_rank, shape[1])),
        random.standard_normal((clients, shape[0], lora_rank)),
    )
    weights = random.random(clients) + 0.1
    return Stack("any", *(torch.from_numpy(array) for array in (a, b, weights / weights.sum())))


def target_of(stack: Stack) -> np.ndarray:
    return products.mean_product(list(stack.a.numpy()), list(stack.b.numpy()), stack.weights.numpy())


def test_a_round_by_hand() -> None:
    """One client has 3 in one corner, the other 1 in the opposite one: the mean is diag(3 / 2, 1 / 2).

    Rank 1 keeps 3 / 2, all of it in B, and loses 1 / 2 of norm(3 / 2, 1 / 2).
    """
    a = torch.tensor([[[3.0, 0]], [[0, 1]]], dtype=torch.float64)
    b = torch.tensor([[[1.0], [0]], [[0], [1]]], dtype=torch.float64)
    stack = Stack("any", a, b, torch.tensor([0.5, 0.5], dtype=torch.float64))
    made = truncated(stack, 1)
    sign = made.a[0, 0].sign()
    torch.testing.assert_close(sign * made.a, torch.tensor([[1.0, 0]], dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(sign * made.b, torch.tensor([[1.5], [0]], dtype=torch.float64), rtol=0, atol=1e-14)
    off, whole = stack.distance(made)
    assert (off, whole) == pytest.approx((0.25, 2.5), abs=1e-12)


def test_a_round_by_hand_with_examples() -> None:
    """A of 1 and 3, B of 2 and 4, from 1 and 3 examples: the mean of the products is 9.5, and A is 1 or -1."""
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    factored.run_round(FlexLoRA(lora_rank=1), state, factored.given(state, a=[1, 3], b=[2, 4], examples=[1, 3]))
    a, b = factored.factors(state)["one"]
    assert abs(a.item()) == pytest.approx(1, abs=1e-14)
    assert a.item() * b.item() == pytest.approx(9.5, abs=1e-13)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_it_is_the_truncated_decomposition_of_the_matrix(
    seed: int, clients: int, lora_rank: int, shape: tuple[int, int]
) -> None:
    """Also where the rank is above what D_in, D_out or the clients allow: the rest is zero or harmless."""
    stack = stack_of(seed, clients, lora_rank, shape)
    target = target_of(stack)
    made = truncated(stack, lora_rank)
    assert made.a.shape == (lora_rank, shape[1])
    assert made.b.shape == (shape[0], lora_rank)
    np.testing.assert_allclose(
        (made.b @ made.a).numpy(), products.truncated(target, lora_rank), rtol=0, atol=1e-10 * np.linalg.norm(target)
    )
    values = np.linalg.svd(target, compute_uv=False)[:lora_rank]
    sizes = made.b.norm(dim=0).numpy()  # the singular values, falling
    np.testing.assert_allclose(sizes[: len(values)], values, rtol=0, atol=1e-7 * np.linalg.norm(target))
    square = (made.a @ made.a.T)[: min(lora_rank, shape[1]), : min(lora_rank, shape[1])]
    torch.testing.assert_close(square, torch.eye(len(square), dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("apart", [1e-2, 1e-5, 1e-9])
def test_products_that_fall_off_by_many_orders_are_cut_to_a_millionth(apart: float) -> None:
    """Clients that hardly differ, and singular values down to a trillionth of the first: what is lost is what the best
    approximation loses, to 1e-12 of the whole."""
    random = np.random.default_rng(4)
    lora_rank, clients = 4, 5
    decay = 10.0 ** -np.arange(0, 12, 3)
    common_a, common_b = random.standard_normal((lora_rank, 40)), random.standard_normal((50, lora_rank)) * decay
    a = common_a + apart * random.standard_normal((clients, lora_rank, 40))
    b = common_b + apart * random.standard_normal((clients, 50, lora_rank)) * decay
    stack = Stack("any", torch.from_numpy(a), torch.from_numpy(b), torch.full((clients,), 1 / clients).double())
    target = target_of(stack)
    made = truncated(stack, lora_rank)
    lost = np.linalg.norm(target - (made.b @ made.a).numpy())
    best = np.linalg.norm(target - products.truncated(target, lora_rank))
    assert lost <= best + 1e-12 * np.linalg.norm(target)
    assert np.linalg.norm((made.b @ made.a).numpy() - products.truncated(target, lora_rank)) < 1e-6 * np.linalg.norm(
        target
    )


def test_at_full_rank_it_is_stacking_and_the_mean_of_the_products() -> None:
    """Two clients of rank 2 in a server of rank 4: nothing is cut, whether it goes into the factors or the weights."""
    ends = {}
    for method in (FlexLoRA(lora_rank=4), FLoRAStacking(lora_rank=4)):
        state = factored.server(SHAPES, lora_rank=4)
        clients = factored.drifted(state, 2, by=1.0)
        for client in clients:  # of rank 2, in the first rows and columns
            outside = torch.ones_like(client.vector)
            outside[rank_slice(state.layout, 2)] = 0
            client.lora_rank = 2
            client.vector = client.vector * (1 - outside)
        before = {layer: state.backbone.weight(layer).numpy().copy() for layer in SHAPES}
        own = {layer: factored.of_clients(state, clients, layer) for layer in SHAPES}
        weights = factored.weights_of(clients, "examples")
        factored.run_round(method, state, clients)
        ends[method.label] = factored.effective(state, method.scale)
        for layer in SHAPES:
            expected = before[layer] + method.scale * products.mean_product(*own[layer], weights)
            np.testing.assert_allclose(ends[method.label][layer], expected, rtol=0, atol=1e-12)
        assert state.measures["product_error"] < 1e-7


def test_the_error_is_what_the_rank_cuts_off() -> None:
    state = factored.server({"one": (6, 5)}, lora_rank=2)
    clients = factored.drifted(state, 3, by=1.0)
    target = products.mean_product(
        *factored.of_clients(state, clients, "one"), factored.weights_of(clients, "examples")
    )
    factored.run_round(FlexLoRA(lora_rank=2), state, clients)
    values = np.linalg.svd(target, compute_uv=False)
    expected = np.linalg.norm(values[2:]) / np.linalg.norm(values)
    assert state.measures["product_error"] == pytest.approx(expected, rel=1e-9)


def test_clients_of_tiers_work_on_the_leading_slice() -> None:
    """Ranks 1, 2 and 4 of 4, by the seed; both ends know the slice, so that it costs no indices."""
    method = FlexLoRA(lora_rank=4, tiers=3)
    assert method.label == "FlexLoRA ranks 1, 2, 4"
    state = factored.server({"one": (5, 6)}, lora_rank=4, head=3)
    plans = {client: method.plan(state, 1, client) for client in range(40)}
    assert {plan.lora_rank for plan in plans.values()} == {1, 2, 4}
    assert plans == {client: method.plan(state, 9, client) for client in range(40)}
    for rank in (1, 2, 4):
        support = method.upload_support(tiny.shared_of(state), Plan(lora_rank=rank))
        assert support is not None
        assert len(support) == rank * (5 + 6) + 3
        assert torch.equal(support, method.download_support(tiny.shared_of(state), Plan(lora_rank=rank)))
    assert list(method.views(state)) == ["full", "rank2", "rank1"]
    small = state.layout.views(method.views(state)["rank1"])
    whole = state.layout.views(state.vector.detach())
    for name, rows in (("one.lora_A.default.weight", 0), ("one.lora_B.default.weight", 1)):
        assert torch.equal(small[name].narrow(rows, 0, 1), whole[name].narrow(rows, 0, 1))
        assert not small[name].narrow(rows, 1, 3).any()


def test_without_tiers_everybody_has_all_ranks() -> None:
    method, state = FlexLoRA(), factored.server({"one": (5, 6)}, lora_rank=16)
    assert method.label == "FlexLoRA"
    assert method.plan(state, 1, 0) == Plan()
    assert method.upload_support(tiny.shared_of(state), Plan()) is None
    assert list(method.views(state)) == ["full"]


def test_tiers_beyond_the_rank_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"method\.tiers 4 .* needs a LoRA rank of 8"):
        FlexLoRA(lora_rank=4, tiers=4)
