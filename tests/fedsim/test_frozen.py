"""Weights that do not train, changed between two rounds."""

import pytest
import torch
from torch import Tensor

from fedsim.frozen import FrozenBackbone
from methods.lora import LoRA
from tests import tiny

LAYERS = {"vit": "attention.q_proj", "gpt2": "attn.c_attn"}
"""A Linear, and a Conv1D, which holds its weight the other way round."""


def built(backbone: str = "vit", dtype: torch.dtype = torch.float32) -> tuple[tiny.Tiny, FrozenBackbone, str]:
    made = tiny.build(LoRA(lora_rank=2), backbone, dtype)
    layer = next(pair.layer for pair in made.parameters.layout.pairs if pair.layer.endswith(LAYERS[backbone]))
    return made, FrozenBackbone(made.model), layer


def output(made: tiny.Tiny, layer: str, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return made.model.get_submodule(layer)(inputs)


@pytest.mark.parametrize("backbone", LAYERS)
def test_a_change_is_added_the_way_round_that_the_module_computes(backbone: str) -> None:
    """The output moves by change @ x, whether the module is a Linear or a Conv1D; B is zero here."""
    made, frozen, layer = built(backbone)
    d_out, d_in = frozen.shape(layer)
    assert (d_out, d_in) == ((16, 16) if backbone == "vit" else (48, 16))
    change, inputs = torch.randn(d_out, d_in), torch.randn(4, d_in)
    before = output(made, layer, inputs)
    moved = frozen.add(layer, change)
    torch.testing.assert_close(output(made, layer, inputs) - before, inputs @ change.T, rtol=0, atol=1e-5)
    assert moved.shape == change.shape
    torch.testing.assert_close(moved.float(), change, rtol=0, atol=1e-6)
    assert torch.equal(
        frozen.weight(layer).flatten().sort().values, frozen.changed[name_of(layer)].flatten().sort().values
    )


def test_a_double_precision_weight_moves_by_the_change() -> None:
    _, frozen, layer = built(dtype=torch.float64)
    change = torch.ones(frozen.shape(layer), dtype=torch.float64)
    torch.testing.assert_close(frozen.add(layer, change), change, rtol=0, atol=1e-15)


def name_of(layer: str) -> str:
    return f"{layer}.base_layer.weight"


def test_small_changes_of_a_half_precision_weight_add_up() -> None:
    """Each of them alone is lost in bfloat16, and `add` says so; the sum of 64 is not."""
    _, frozen, layer = built(dtype=torch.bfloat16)
    frozen.weight(layer).fill_(1.0)
    small = torch.full(frozen.shape(layer), 2**-10)
    moved = [frozen.add(layer, small) for _ in range(64)]
    assert not moved[0].any()
    assert frozen.weight(layer).dtype == torch.bfloat16
    assert torch.equal(frozen.weight(layer).float(), torch.full(frozen.shape(layer), 1 + 2**-4))
    assert torch.equal(sum(moved[1:], start=moved[0]).float(), torch.full(frozen.shape(layer), 2**-4))


def test_what_changed_is_told_once() -> None:
    _, frozen, layer = built()
    assert frozen.take_unsent() == {}
    frozen.add(layer, torch.ones(frozen.shape(layer)))
    assert list(frozen.take_unsent()) == [name_of(layer)]
    assert frozen.take_unsent() == {}
    assert list(frozen.changed) == [name_of(layer)]


def test_another_worker_takes_over_what_it_is_told_and_tells_nobody() -> None:
    (_, mine, layer), (made, theirs, _) = built(), built()
    mine.add(layer, torch.ones(mine.shape(layer)))
    theirs.write(mine.take_unsent())
    assert torch.equal(theirs.weight(layer), mine.weight(layer))
    assert theirs.take_unsent() == {}
    others = [name for name, p in made.model.named_parameters() if name not in mine.changed]
    fresh = tiny.build(LoRA(lora_rank=2)).model
    assert all(torch.equal(made.model.get_parameter(name), fresh.get_parameter(name)) for name in others)


def test_a_resumed_server_tells_all_that_was_ever_changed() -> None:
    (_, first, layer), (_, resumed, _) = built(), built()
    first.add(layer, torch.ones(first.shape(layer)))
    resumed.restore({name: value.clone() for name, value in first.changed.items()})
    assert torch.equal(resumed.weight(layer), first.weight(layer))
    assert list(resumed.take_unsent()) == [name_of(layer)]
    for frozen in (first, resumed):
        frozen.add(layer, torch.full(frozen.shape(layer), 0.1))
    assert torch.equal(resumed.weight(layer), first.weight(layer))
