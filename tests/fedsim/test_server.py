from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.checkpoint import newest_checkpoint, save_checkpoint
from fedsim.method import ServerState
from fedsim.server import initial_state, restore_state, snapshot
from methods.lora import LoRA
from tests import tiny
from tests.oracle import server_optimizers as oracle

START = [1.0, -2.0, 0.5, 0.0, 3.0]
# The scale changes from round to round, so that Yogi's second moment goes down as well as up.
UPDATES = np.random.default_rng(0).standard_normal((5, 5)) * np.array([[3], [0.1], [1], [5], [0.01]])
MOMENTS: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}
TWINS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (oracle.adam, MOMENTS),
    "adamw": (oracle.adamw, {**MOMENTS, "weight_decay": 0.2}),
    "yogi": (oracle.yogi, MOMENTS),
    "adagrad": (oracle.adagrad, {"lr": 0.1, "eps": 1e-3}),
    "sgd": (oracle.sgd, {"lr": 0.1, "momentum": 0.7}),
}
every_optimizer = pytest.mark.parametrize("kind", TWINS)


def step(state: ServerState, update: np.ndarray) -> torch.Tensor:
    LoRA().step(state, torch.from_numpy(update).to(state.vector))
    return state.vector.detach().clone()


def state_like(state: ServerState, kind: str) -> ServerState:
    return tiny.server_state([0.0] * len(state.vector), optimizer=kind, **TWINS[kind][1])


@every_optimizer
def test_five_steps_equal_the_plain_twin(kind: str) -> None:
    twin, options = TWINS[kind]
    state = tiny.server_state(START, optimizer=kind, **options)
    for expected, update in zip(twin(np.array(START), UPDATES, **options), UPDATES, strict=True):
        np.testing.assert_allclose(step(state, update).numpy(), expected, rtol=0, atol=1e-12)


def test_the_twins_are_five_different_rules() -> None:
    """Two optimisers that do the same would hide that one stands in for another."""
    ends = {kind: tuple(twin(np.array(START), UPDATES, **options)[-1]) for kind, (twin, options) in TWINS.items()}
    assert len(set(ends.values())) == len(TWINS)


@pytest.mark.parametrize("kind", ["adam", "yogi", "adagrad", "sgd"])
def test_weight_decay_is_added_to_the_gradient(kind: str) -> None:
    options = {**TWINS[kind][1], "weight_decay": 0.3}
    decayed = tiny.server_state(START, optimizer=kind, **options)
    plain = tiny.server_state(START, optimizer=kind, **TWINS[kind][1])
    after = step(decayed, UPDATES[0])
    torch.testing.assert_close(after, step(plain, UPDATES[0] + 0.3 * np.array(START)), rtol=0, atol=1e-14)


def test_fedavg_moves_by_the_mean_update() -> None:
    state = tiny.server_state(START, optimizer="sgd", lr=1.0)
    for update in UPDATES[:2]:
        before = state.vector.detach().clone()
        assert torch.equal(step(state, update), before - torch.from_numpy(update))


@every_optimizer
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_restored_server_goes_on_bit_for_bit(kind: str, rounds: int, tmp_path: Path) -> None:
    """Through the files, as a killed run does; 0 is a server that has not stepped yet."""
    state = tiny.server_state(START, optimizer=kind, **TWINS[kind][1])
    state.tensors["download_mask"] = torch.tensor([0, 3])
    for update in UPDATES[:rounds]:
        step(state, update)
    save_checkpoint(tmp_path, snapshot(state, rounds, {}))
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.round == rounds
    restored = state_like(state, kind)
    restore_state(restored, checkpoint)
    assert torch.equal(restored.vector, state.vector)
    assert torch.equal(restored.tensors["download_mask"], torch.tensor([0, 3]))
    for update in UPDATES[rounds:]:
        assert torch.equal(step(restored, update), step(state, update))


@pytest.mark.parametrize("kind", ["adam", "yogi", "sgd"])
def test_the_moments_matter_after_a_restore(kind: str, tmp_path: Path) -> None:
    """Restoring the vector alone would continue elsewhere: the test above cannot pass for that reason."""
    state = tiny.server_state(START, optimizer=kind, **TWINS[kind][1])
    step(state, UPDATES[0])
    fresh = tiny.server_state(state.vector.tolist(), optimizer=kind, **TWINS[kind][1])
    assert not torch.equal(step(fresh, UPDATES[1]), step(state, UPDATES[1]))


def test_the_server_starts_from_the_models_parameters_without_sharing_them() -> None:
    """Clients train in the model's memory; the server's P must not move with it."""
    built = tiny.build()
    before = built.vector.clone()
    state = initial_state(built.parameters, tiny.ServerOptions())
    built.parameters.load(built.start())
    assert torch.equal(state.vector, before)
    assert state.layout is built.parameters.layout
