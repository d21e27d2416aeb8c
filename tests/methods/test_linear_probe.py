from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from fedsim.errors import ConfigurationError
from fedsim.server import initial_state
from fedsim.simulation import run_round
from methods.linear_probe import LinearProbe
from tests import tiny


def headless() -> nn.Module:
    """A classification model that ends where its head would begin, as transformers has it for no labels."""
    return hf.ViTForImageClassification(hf.ViTConfig(**tiny.SIZES, image_size=8, patch_size=4, num_labels=0))


@pytest.mark.parametrize("backbone", ["vit", "gpt2", "roberta"])
def test_the_head_alone_trains(backbone: str) -> None:
    built = tiny.build(LinearProbe(), backbone)
    experiment = tiny.experiment(built, [5, 4, 9])
    state = initial_state(experiment)
    assert set(state.layout.segments()) == {"head"}
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    run_round(experiment, state, 1, tiny.ONE_WORKER, None)
    built.parameters.load(state.vector.detach())
    changed = {name for name, p in built.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {place.name for place in state.layout.entries}


@pytest.mark.parametrize("make", [tiny.BACKBONES["gpt2_lm"], tiny.BACKBONES["llama"], headless])
def test_a_backbone_without_a_head_of_its_own_is_refused(make: Callable[[], nn.Module]) -> None:
    """A language model's head is part of its backbone, which stays frozen: nothing would train."""
    backbone = make().requires_grad_(False)
    says = rf"LinearProbe trains the head alone, and {type(backbone).__name__} has none .* give data .*--method LoRA"
    with pytest.raises(ConfigurationError, match=says):
        LinearProbe().setup(backbone, 0)
