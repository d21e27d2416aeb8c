from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from fedsim.experiment import Experiment
from fedsim.method import ClientState, Method, ServerState
from fedsim.server import enter_stage, initial_state, restore_state, snapshot
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
    state = initial_state(tiny.experiment(built, [4, 4, 4]))
    built.parameters.load(built.start())
    assert torch.equal(state.vector, before)
    assert state.layout is built.parameters.layout
    assert torch.equal(state.initial, before)


def through_files(state: ServerState, round: int, folder: Path) -> Checkpoint:
    save_checkpoint(folder, snapshot(state, round, {}))
    checkpoint, _ = newest_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def test_what_clients_keep_survives_a_checkpoint(tmp_path: Path) -> None:
    """Names with dots, several dtypes, clients that keep nothing, and tensors that share memory."""
    state = tiny.server_state(START)
    rows = torch.arange(6.0).view(2, 3)
    state.clients = {
        3: ClientState(7, {"error_feedback.residual": rows[0].double(), "own": rows, "again": rows[1:]}),
        12: ClientState(2),
        1: ClientState(5, {"own": torch.tensor(True)}),
    }
    restored = tiny.server_state(START)
    restore_state(restored, through_files(state, 7, tmp_path))
    assert set(restored.clients) == {1, 3, 12}
    for client, held in state.clients.items():
        assert restored.clients[client].round == held.round
        found = restored.clients[client].tensors
        assert set(found) == set(held.tensors)
        for name, tensor in held.tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert restored.client(99) == ClientState(0, {})
    assert 99 not in restored.clients


def test_a_changed_backbone_survives_a_checkpoint(tmp_path: Path) -> None:
    """Only what changed is kept, and a worker that has not heard of it yet is told."""
    built = tiny.build()
    state = initial_state(tiny.experiment(built, [4, 4, 4]))
    layer = state.layout.pairs[2].layer
    name = f"{layer}.base_layer.weight"
    state.backbone.add(layer, torch.full((16, 16), 0.25))
    state.backbone.take_unsent()
    checkpoint = through_files(state, 1, tmp_path)
    assert [n for n in checkpoint.tensors if n.startswith("backbone.")] == [f"backbone.{name}"]

    fresh = tiny.build()
    untouched = fresh.model.get_parameter(name).detach().clone()
    restored = initial_state(tiny.experiment(fresh, [4, 4, 4]))
    restore_state(restored, checkpoint)
    assert torch.equal(fresh.model.get_parameter(name), untouched + 0.25)
    assert list(restored.backbone.take_unsent()) == [name]
    restored.backbone.add(layer, torch.full((16, 16), 0.25))
    assert torch.equal(restored.backbone.changed[name], untouched + 0.25 + 0.25)


def test_a_restarted_optimizer_has_no_momentum() -> None:
    state = tiny.server_state(START, optimizer="adam", **MOMENTS)
    step(state, UPDATES[0])
    fresh = tiny.server_state(state.vector.tolist(), optimizer="adam", **MOMENTS)
    state.restart_optimizer()
    assert torch.equal(step(state, UPDATES[1]), step(fresh, UPDATES[1]))


# Stages: P is made of other segments from some round on.


@dataclass
class Stages(Method):
    """A and the head for two rounds, B and the head for two, then everything; the head is carried over."""

    lora_rank: int = 2

    def segments(self, round: int) -> Collection[str] | None:
        return {1: ("head", "A"), 2: ("head", "B")}.get((round + 1) // 2)

    def begin_stage(self, before: ServerState, after: ServerState) -> None:
        head = [state.layout.where(["head"]) for state in (before, after)]
        after.vector.data[head[1]] = before.vector.detach()[head[0]]
        after.tensors["stages"] = before.tensors.get("stages", torch.tensor(1)) + 1


def staged(backbone: str = "vit") -> tuple[tiny.Tiny, Experiment, ServerState]:
    """Before round 1, as a run begins."""
    built = tiny.build(Stages(), backbone)
    experiment = tiny.experiment(built, [4, 4, 4])
    experiment.parameters.activate(experiment.method.segments(1))
    return built, experiment, initial_state(experiment)


def test_within_a_stage_the_state_is_the_same() -> None:
    _, experiment, state = staged()
    assert enter_stage(experiment, state, 1, True) is state
    assert enter_stage(experiment, state, 2, True) is state
    assert state.layout.segments() == {"A": 192, "head": 51}


def test_a_new_stage_begins_where_setup_left_it_but_for_what_the_method_carries() -> None:
    built, experiment, first = staged()
    setup = tiny.build(Stages()).vector
    whole = tiny.build(Stages()).parameters.layout
    LoRA().step(first, torch.ones(243))
    first.tensors["mask"] = torch.tensor([1])
    first.clients = {4: ClientState(2, {"own": torch.ones(3)})}
    built.parameters.load(first.vector.detach())  # as an evaluation leaves the model

    second = enter_stage(experiment, first, 3, is_server=True)
    assert second is not first
    assert second.layout is experiment.parameters.layout
    assert second.layout.segments() == {"B": 192, "head": 51}
    assert torch.equal(second.initial, setup[whole.where(["B", "head"])])
    b, head = (second.layout.where([segment]) for segment in ("B", "head"))
    assert torch.equal(second.vector[b], setup[whole.where(["B"])])
    assert torch.equal(second.vector[head], first.vector[first.layout.where(["head"])])
    assert not torch.equal(second.vector[head], setup[whole.where(["head"])])
    for pair in whole.pairs:  # A is again as it was drawn, and no longer trains
        a = built.model.get_parameter(pair.a.name)
        assert torch.equal(a.flatten(), setup[pair.a.start : pair.a.stop])
        assert not a.requires_grad
    assert not second.optimizer.state
    assert second.optimizer.param_groups[0]["params"] == [second.vector]
    assert second.clients == {4: ClientState(2, {})}
    assert {name: tensor.tolist() for name, tensor in second.tensors.items()} == {"mask": [1], "stages": 2}

    third = enter_stage(experiment, second, 5, is_server=True)
    assert third.layout == whole
    assert third.tensors["stages"] == 3
    assert enter_stage(experiment, third, 6, is_server=True) is third


def test_other_workers_follow_without_the_servers_state() -> None:
    _, experiment, first = staged()
    second = enter_stage(experiment, first, 3, is_server=False)
    assert second.layout is experiment.parameters.layout
    assert second.layout.segments() == {"B": 192, "head": 51}
    assert torch.equal(second.vector, second.initial)
    assert second.tensors == {}


def test_a_segment_that_the_model_lacks_begins_no_stage() -> None:
    """A language model has no head: its P is A alone, round after round, and its optimiser goes on."""
    _, experiment, state = staged("llama")
    assert set(state.layout.segments()) == {"A"}
    assert enter_stage(experiment, state, 2, True) is state
    second = enter_stage(experiment, state, 3, True)
    assert set(second.layout.segments()) == {"B"}
    assert enter_stage(experiment, second, 4, True) is second


def test_a_checkpoint_of_a_later_stage_fits_a_run_that_begins_there(tmp_path: Path) -> None:
    _, experiment, state = staged()
    state = enter_stage(experiment, state, 3, True)
    LoRA().step(state, torch.ones(243))
    checkpoint = through_files(state, 3, tmp_path)
    _, resumed, _ = staged()
    resumed.parameters.activate(resumed.method.segments(3))
    restored = initial_state(resumed)
    restore_state(restored, checkpoint)
    assert torch.equal(restored.vector, state.vector)
    assert torch.equal(restored.initial, state.initial)
    assert restored.layout == state.layout
    assert enter_stage(resumed, restored, 4, True) is restored
    update = torch.arange(243.0)
    LoRA().step(state, update)
    LoRA().step(restored, update)
    assert torch.equal(restored.vector, state.vector)
