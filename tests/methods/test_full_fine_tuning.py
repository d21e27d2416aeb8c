from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor, nn

from fedsim.adapters import export_adapter, export_backbone
from fedsim.backbone import quiet
from fedsim.packed import why_not_packed
from fedsim.server import initial_state
from fedsim.simulation import run_round
from methods.full_fine_tuning import FullFineTuning
from tests import tiny

AUTO = {
    "vit": hf.AutoModelForImageClassification,
    "gpt2": hf.AutoModelForSequenceClassification,
    "gpt2_lm": hf.AutoModelForCausalLM,
}


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("backbone", AUTO)
def test_every_weight_of_the_backbone_is_in_p_once(backbone: str) -> None:
    """Tied embeddings count once; of the head that PEFT copied, the copy trains and the original does not."""
    with torch.random.fork_rng():
        weights = sum(parameter.numel() for parameter in tiny.BACKBONES[backbone]().parameters())
    built = tiny.build(FullFineTuning(), backbone)
    layout = built.parameters.layout
    assert layout.length == weights
    assert set(layout.segments()) == {"backbone"} | ({"head"} if backbone != "gpt2_lm" else set())
    names = {entry.name for entry in layout.entries}
    frozen = [name for name, _ in built.model.named_parameters() if name not in names]
    assert frozen
    assert all(".lora_" in name or ".original_module." in name for name in frozen)


@pytest.mark.parametrize("backbone", AUTO)
def test_a_round_and_its_export(backbone: str, tmp_path: Path) -> None:
    """The folder beside the adapter, loaded by transformers and PEFT, gives the run's logits; ties stay ties."""
    built = tiny.build(FullFineTuning(), backbone)
    experiment = tiny.experiment(built, [5, 4, 9])
    state = initial_state(experiment)
    run_round(experiment, state, 1, tiny.ONE_WORKER, None)
    moved = (state.vector.detach() != state.initial).double().mean()
    assert moved > 0.5
    built.parameters.load(state.vector.detach())
    with quiet():
        export_backbone(built.model, tmp_path / "backbone")
        export_adapter(built.model, tmp_path / "adapter", str(tmp_path / "backbone"))
        base = AUTO[backbone].from_pretrained(tmp_path / "backbone")
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    batch = built.test.batch(torch.arange(6))
    inputs = {name: column for name, column in batch.items() if name in ("pixel_values", "input_ids", "attention_mask")}
    torch.testing.assert_close(logits(loaded, inputs), logits(built.model, inputs), rtol=0, atol=1e-6)
    if backbone == "gpt2_lm":
        assert base.lm_head.weight is base.transformer.wte.weight


def test_a_backbone_in_half_precision_trains_in_full() -> None:
    built = tiny.build(FullFineTuning(), "gpt2", torch.bfloat16)
    assert built.vector.dtype == torch.float32


def test_clients_train_one_after_another() -> None:
    """What trains outside of linear layers cannot be packed."""
    built = tiny.build(FullFineTuning())
    assert "trains and belongs to no nn.Linear" in why_not_packed(built.module, built.parameters.layout)


def test_the_label_spells_it_out() -> None:
    assert FullFineTuning().label == "Full fine-tuning"
