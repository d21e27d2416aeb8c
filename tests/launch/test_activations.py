"""What is computed twice to save memory, and once to save time: the same updates, or a refusal."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data_partitions.dataset import DataSet, FederatedData
from fedsim.errors import ConfigurationError
from fedsim.server import initial_state
from fedsim.simulation import run_round
from launch.build import Built, build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests import tiny
from tests.battery import FEW_DIGITS, entries

PROBE = ("--method", "LinearProbe")
FEATURES = ("--client.cache_features", "true")
AGAIN = ("--client.checkpoint_activations", "true")


def built(*options: str) -> Built:
    fabric, workers = start_workers("cpu", "32-true", 1)
    return build(read_settings([*FEW_DIGITS, *options]), fabric, workers)


def two_rounds(made: Built) -> Tensor:
    """How far P moves in two rounds."""
    made.experiment.parameters.activate(made.experiment.method.segments(1))
    state = initial_state(made.experiment)
    start = state.vector.detach().clone()
    for round in (1, 2):
        run_round(made.experiment, state, round, tiny.ONE_WORKER, None)
    return state.vector.detach() - start


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def some_layer(made: Built) -> nn.Module:
    """The first part of the backbone's first layer."""
    return next(module for name, module in made.model.named_modules() if "layer" in name and "norm" in name)


@pytest.mark.parametrize("pack", ["1", "3"])
def test_a_head_learns_the_same_from_features_that_are_computed_once(pack: str) -> None:
    options = (*PROBE, "--client.pack", pack)
    plain, made = built(*options), built(*options, *FEATURES)
    calls = count_calls(some_layer(made))
    expected, found = two_rounds(plain), two_rounds(made)
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    evaluated = [m.experiment.evaluator.evaluate(expected, tiny.ONE_WORKER) for m in (plain, made)]
    assert torch.allclose(*(found.outputs["logits"] for found in evaluated), atol=1e-5)
    assert evaluated[0].metrics["accuracy"] == evaluated[1].metrics["accuracy"]
    assert calls == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "LoRA"), "lora_A.default.weight trains, and with it what lies below the head changes"),
        (("--method", "FullFineTuning"), "trains, and with it what lies below"),
        (
            ("--method", "LinearProbe", "--client.backbone_dropout", "true"),
            "expected false with client.backbone_dropout",
        ),
        (
            ("--method", "LinearProbe", "--data", "tests.battery.Photographs", "--backbone.path", "{here}/vit"),
            "ImageData augments its examples anew whenever they are trained on",
        ),
        (
            (
                "--method",
                "LinearProbe",
                "--data",
                "tests.launch.test_activations.WordByWord",
                "--backbone.path",
                "{here}/gpt2",
            ),
            "the backbone's head reads (256, 8, 16) for 256 examples; expected a row of features for each",
        ),
    ],
    ids=["adapters", "everything", "dropout", "augmented", "a head on every token"],
)
def test_features_that_change_are_not_cached(options: Sequence[str], said: str, tmp_path: Path) -> None:
    entries(tmp_path)
    tiny.save_backbone(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ConfigurationError) as raised:
        built(*(option.format(here=tmp_path) for option in options), *FEATURES)
    assert said in str(raised.value)


class WordByWord(DataSet):
    """Texts of which a language model with a head reads every token."""

    def load(self) -> FederatedData:
        """Draws them."""
        return tiny.texts(train=600, test=300)


@pytest.mark.parametrize("pack", ["1", "3"])
def test_activations_that_are_computed_again_give_the_same_update(pack: str) -> None:
    """One after another with dropout, too, which is drawn again as it was."""
    dropout = "0.1" if pack == "1" else "0"
    options = ("--method", "LoRA", "--client.pack", pack, "--method.lora_dropout", dropout)
    plain, made = built(*options), built(*options, *AGAIN)
    assert (plain.pack, made.pack) == (int(pack), int(pack))
    calls = [count_calls(some_layer(m)) for m in (plain, made)]
    expected, found = two_rounds(plain), two_rounds(made)
    assert len(calls[1]) == 2 * len(calls[0]) > 0
    assert expected.norm() > 0
    assert torch.equal(found, expected)


def test_packed_clients_with_dropout_do_not_compute_again() -> None:
    made = built("--method", "LoRA", "--client.pack", "3", "--method.lora_dropout", "0.1", *AGAIN)
    assert made.pack == 1
    assert any("checkpoint_activations would draw each client's dropout again" in note for note in made.notes)


def test_a_backbone_that_cannot_compute_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ViTForImageClassification

    monkeypatch.setattr(ViTForImageClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigurationError, match=r"client.checkpoint_activations: ViTForImageClassification cannot"):
        built("--method", "LoRA", *AGAIN)
