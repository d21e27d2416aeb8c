"""Of a checkpoint whose checksum fits, all is checked that the method does not know alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.checkpoint import Checkpoint, newest_checkpoint
from fedsim.errors import ConfigurationError
from fedsim.experiment import Experiment
from fedsim.options import ServerOptions
from fedsim.restoring import require_restorable
from methods.fed_ex_lora import FedExLoRA
from methods.fed_sa_lora import FedSALoRA
from methods.lora import LoRA
from tests import tiny
from tests.short_run import SIZES, short_run

Left = tuple[Checkpoint, Experiment]


def left_by(method: Any, folder: Path, **fields: Any) -> Left:
    """What a run leaves, and an experiment that would go on with it."""
    short_run(method, folder, **fields)
    checkpoint, _ = newest_checkpoint(folder / "checkpoint")
    assert checkpoint is not None
    return checkpoint, tiny.experiment(tiny.build(method), SIZES, **fields)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    return left_by(LoRA(lora_rank=2), tmp_path_factory.mktemp("run"))


def tensors(**changed: Callable[[Tensor], Tensor]) -> Callable[[Checkpoint], Checkpoint]:
    """Changes tensors by the last part of their names."""

    def change(checkpoint: Checkpoint) -> Checkpoint:
        found = {
            name: changed[last](value) if (last := name.rpartition(".")[2]) in changed else value
            for name, value in checkpoint.tensors.items()
        }
        assert any(found[name] is not checkpoint.tensors[name] for name in found)
        return replace(checkpoint, tensors=found)

    return change


def without(name: str) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: replace(
        checkpoint, tensors={key: value for key, value in checkpoint.tensors.items() if key != name}
    )


def with_tensor(name: str) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: replace(checkpoint, tensors={**checkpoint.tensors, name: torch.ones(2)})


def with_meta(**meta: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: replace(checkpoint, meta={**checkpoint.meta, **meta})


BAD: dict[str, tuple[Callable[[Checkpoint], Checkpoint], str]] = {
    "no vector": (without("vector"), "no trainable values"),
    "a vector in a matrix": (tensors(vector=lambda v: v[None]), "no trainable values"),
    "a shorter vector": (tensors(vector=lambda v: v[:-1]), "trainable values, these settings have"),
    "a vector of integers": (tensors(vector=lambda v: v.long()), "not finite numbers of torch.float32"),
    "a vector with a hole": (tensors(vector=lambda v: v / 0), "not finite numbers"),
    "a moment missing": (without("optimizer.exp_avg"), "optimiser adam"),
    "a moment too many": (with_tensor("optimizer.extra"), "optimiser adam"),
    "a shorter moment": (tensors(exp_avg=lambda v: v[1:]), "optimiser adam"),
    "a step in a list": (tensors(step=lambda v: v[None]), "optimiser adam"),
    "a moment of integers": (tensors(exp_avg_sq=lambda v: v.long()), "optimiser adam"),
    "a moment that is not finite": (tensors(exp_avg=lambda v: v / 0), "optimiser adam"),
    "a weight of nobody": (with_tensor("backbone.nowhere.weight"), "'nowhere.weight', which the backbone does not"),
    "a client that there is not": (with_meta(clients={"6": 1}), "clients that there are not"),
    "a client by another name": (with_meta(clients={"+1": 1}), "clients that there are not"),
    "clients in a list": (with_meta(clients=[1]), "clients that there are not"),
    "a client in a round before all": (with_meta(clients={"1": -1}), "clients that there are not"),
    "state of a client that took no part": (with_tensor("client.77.B"), "clients that there are not"),
    "no history": (with_meta(history=None), "history is missing"),
    "a history of something else": (with_meta(history={"rows": 3}), "'rows', which no run leaves so"),
}


def test_what_a_run_left_is_taken(left: Left) -> None:
    checkpoint, experiment = left
    history = require_restorable(checkpoint, experiment)
    assert history.rows[-1]["round"] == 2
    assert history.clients > 0


@pytest.mark.parametrize("name", BAD)
def test_what_no_run_leaves_is_refused(name: str, left: Left) -> None:
    change, says = BAD[name]
    checkpoint, experiment = left
    with pytest.raises(ConfigurationError, match=says):
        require_restorable(change(checkpoint), experiment)


def test_what_clients_keep_is_taken(tmp_path: Path) -> None:
    checkpoint, experiment = left_by(FedSALoRA(lora_rank=2), tmp_path)
    assert any(name.startswith("client.") for name in checkpoint.tensors)
    require_restorable(checkpoint, experiment)


def test_changed_weights_of_the_backbone_keep_their_shapes(tmp_path: Path) -> None:
    checkpoint, experiment = left_by(FedExLoRA(lora_rank=2), tmp_path)
    require_restorable(checkpoint, experiment)
    (name, *_) = [name for name in checkpoint.tensors if name.startswith("backbone.")]
    for value in (checkpoint.tensors[name][1:], checkpoint.tensors[name].long()):
        with pytest.raises(ConfigurationError, match="to another shape or kind"):
            require_restorable(replace(checkpoint, tensors={**checkpoint.tensors, name: value}), experiment)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "yogi", "adagrad"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_every_optimiser_leaves_is_taken(optimizer: Any, momentum: float, tmp_path: Path) -> None:
    fields = {"server": ServerOptions(optimizer=optimizer, momentum=momentum)}
    checkpoint, experiment = left_by(LoRA(lora_rank=2), tmp_path, **fields)
    require_restorable(checkpoint, experiment)
