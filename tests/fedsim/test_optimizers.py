from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.optimizers import SGD, AdamW, LocalOptimizer, clip

STEPS, LENGTH = 6, 10
CASES: dict[str, tuple[LocalOptimizer, type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (SGD(0.1, 0.0), torch.optim.SGD, {"lr": 0.1}),
    "momentum": (SGD(0.1, 0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "decay": (SGD(0.1, 0.9, 0.2), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}),
    "adamw": (AdamW(0.1), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}),
    "adamw_decay": (
        AdamW(0.1, (0.8, 0.95), 1e-4, 0.3),
        torch.optim.AdamW,
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3},
    ),
}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run_torch(case: str, start: Tensor, gradients: Tensor, scales: dict[float, slice] | None = None) -> Tensor:
    """Torch's own optimiser, with a group of its own for every learning rate."""
    _, kind, arguments = CASES[case]
    cuts = scales or {1.0: slice(None)}
    parts = {scale: nn.Parameter(start[cut].clone()) for scale, cut in cuts.items()}
    rest = {name: value for name, value in arguments.items() if name != "lr"}
    optimizer = kind([{"params": [part], "lr": arguments["lr"] * scale} for scale, part in parts.items()], **rest)
    for gradient in gradients:
        for scale, part in parts.items():
            part.grad = gradient[cuts[scale]].clone()
        optimizer.step()
    return torch.cat([part.detach() for part in parts.values()])


def run_flat(case: str, start: Tensor, gradients: Tensor, scale: Tensor | None = None) -> Tensor:
    optimizer = CASES[case][0]
    vector = start.clone()
    state = optimizer.state(vector)
    for gradient in gradients:
        optimizer.step(vector, gradient.clone(), state, scale)
    return vector


@every_case
@every_dtype
def test_flat_steps_equal_torchs(case: str, dtype: torch.dtype) -> None:
    start, gradients = random(LENGTH, seed=1, dtype=dtype), random(STEPS, LENGTH, seed=2, dtype=dtype)
    flat = run_flat(case, start, gradients)
    assert flat.dtype == dtype
    torch.testing.assert_close(flat, run_torch(case, start, gradients), atol=TOLERANCE[dtype], rtol=0)


@every_case
@every_dtype
def test_many_clients_step_as_each_alone(case: str, dtype: torch.dtype) -> None:
    starts, gradients = random(3, LENGTH, seed=1, dtype=dtype), random(STEPS, 3, LENGTH, seed=2, dtype=dtype)
    together = run_flat(case, starts, gradients)
    for row in range(3):
        assert torch.equal(together[row], run_flat(case, starts[row], gradients[:, row]))


@every_case
@pytest.mark.parametrize("clients", [None, 2])
def test_rate_scale_is_a_learning_rate_of_its_own(case: str, clients: int | None) -> None:
    """As torch's groups with different rates; decoupled weight decay shrinks with the rate, as there."""
    start, gradients = random(LENGTH, seed=3), random(STEPS, LENGTH, seed=4)
    scales = {0.25: slice(0, 4), 3.0: slice(4, LENGTH)}
    scale = torch.ones(LENGTH, dtype=torch.float64)
    for factor, cut in scales.items():
        scale[cut] = factor
    expected = run_torch(case, start, gradients, scales)
    if clients is not None:
        start, gradients, scale = start.repeat(clients, 1), gradients[:, None].repeat(1, clients, 1), scale.repeat(2, 1)
        expected = expected.repeat(clients, 1)
    torch.testing.assert_close(run_flat(case, start, gradients, scale), expected, atol=1e-13, rtol=0)


@every_case
def test_zeroing_a_row_of_the_state_is_a_fresh_client(case: str) -> None:
    """A slot whose client is done is given to the next one so, while its neighbours go on."""
    optimizer = CASES[case][0]
    vectors, gradients = random(2, LENGTH, seed=5), random(2 * STEPS, 2, LENGTH, seed=6)
    before = vectors.clone()
    state = optimizer.state(vectors)
    for gradient in gradients[:STEPS]:
        optimizer.step(vectors, gradient.clone(), state, None)
    vectors[1] = before[1]
    for value in state.values():
        value[1] = 0
    for gradient in gradients[STEPS:]:
        optimizer.step(vectors, gradient.clone(), state, None)
    assert torch.equal(vectors[0], run_flat(case, before[0], gradients[:, 0]))
    assert torch.equal(vectors[1], run_flat(case, before[1], gradients[STEPS:, 1]))


@every_case
def test_a_step_leaves_the_gradient_alone(case: str) -> None:
    optimizer = CASES[case][0]
    vector, gradient = random(LENGTH, seed=7), random(LENGTH, seed=8)
    optimizer.step(vector, gradient, optimizer.state(vector), None)
    assert torch.equal(gradient, random(LENGTH, seed=8))


@every_dtype
def test_clipping_is_torchs_client_by_client(dtype: torch.dtype) -> None:
    """A long gradient, a short one and one of zeros, alone and together."""
    gradients = torch.stack([3 * random(LENGTH, seed=1, dtype=dtype), 0.01 * random(LENGTH, seed=2, dtype=dtype)])
    gradients = torch.cat([gradients, torch.zeros(1, LENGTH, dtype=dtype)])
    expected = []
    for gradient in gradients:
        part = nn.Parameter(torch.zeros(LENGTH, dtype=dtype))
        part.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([part], 0.5)
        expected.append(part.grad)
        alone = gradient.clone()
        clip(alone, 0.5)
        torch.testing.assert_close(alone, part.grad, rtol=TOLERANCE[dtype], atol=0)
    together = gradients.clone()
    clip(together, 0.5)
    torch.testing.assert_close(together, torch.stack(expected), rtol=TOLERANCE[dtype], atol=0)
    before = together.clone()
    clip(together, None)
    assert torch.equal(together, before)
