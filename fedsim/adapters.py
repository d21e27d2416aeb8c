"""LoRA on a backbone: which linear layers play which role, the adapter itself, and the folders it leaves in."""

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsim.backbone import head_modules, quiet
from fedsim.errors import ConfigurationError, unknown_name

ROLES = ("query", "key", "value", "output", "mlp")

# How a layer's name ends when it plays a role, layer numbers written as *. One layer may play several roles.
_FUSED = ("attn.c_attn", "attention.query_key_value", "attn.qkv_proj", "attn.Wqkv")  # GPT-2, NeoX, Phi-3, ModernBERT
ROLE_ENDINGS: dict[str, tuple[str, ...]] = {
    "query": (
        *("attention.q_proj", "attn.q_proj"),  # ViT and DeiT under transformers 5, Llama, BART
        *("attention.query", "attention.self.query", "attention.self.query_proj"),  # ViT before 5, BERT, DeBERTa
        *("attention.q_lin", "Attention.q"),  # DistilBERT, T5
        *_FUSED,
    ),
    "key": (
        *("attention.k_proj", "attn.k_proj"),
        *("attention.key", "attention.self.key", "attention.self.key_proj"),
        *("attention.k_lin", "Attention.k"),
        *_FUSED,
    ),
    "value": (
        *("attention.v_proj", "attn.v_proj"),
        *("attention.value", "attention.self.value", "attention.self.value_proj"),
        *("attention.v_lin", "Attention.v"),
        *_FUSED,
    ),
    "output": (
        *("attention.o_proj", "attn.o_proj", "attn.out_proj"),  # ViT and DeiT under transformers 5, Llama, BART
        *("attention.output.dense", "attention.dense"),  # ViT before 5 and BERT, NeoX
        *("attn.c_proj", "attention.out_lin", "Attention.o", "attn.Wo"),  # GPT-2, DistilBERT, T5, ModernBERT
    ),
    "mlp": (
        *("mlp.fc1", "mlp.fc2", "*.fc1", "*.fc2"),  # ViT and DeiT under transformers 5, BART
        *("*.intermediate.dense", "*.output.dense"),  # ViT before 5, BERT
        *("mlp.c_fc", "mlp.c_proj", "ffn.lin1", "ffn.lin2"),  # GPT-2, DistilBERT
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_up_proj"),  # Llama, Phi-3
        *("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"),  # T5
        *("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "mlp.Wi", "mlp.Wo"),  # NeoX, ModernBERT
    ),
}


def resolve_targets(backbone: nn.Module, roles: Sequence[str]) -> list[str]:
    """Finds the linear layers that play the given roles, by the names that the model has.

    Args:
        backbone: the model, before LoRA is added.
        roles: some of `ROLES`. A layer that holds several of them (GPT-2's `c_attn`) is found by each.

    Returns:
        Full module names, each once, in the model's order; never the head.

    Raises:
        ConfigurationError: if there is no role, a role is unknown, or no layer plays one of them.
    """
    if not roles:
        raise ConfigurationError(f"no LoRA roles given; expected some of {', '.join(ROLES)}")
    layers = _linear_layers(backbone)
    targets: set[str] = set()
    for role in roles:
        if role not in ROLE_ENDINGS:
            raise unknown_name("LoRA role", role, ROLES)
        found = {name for name, pattern in layers.items() if pattern.endswith(ROLE_ENDINGS[role])}
        if not found:
            raise ConfigurationError(
                f"no linear layer of {type(backbone).__name__} plays the LoRA role {role!r}; "
                f"it has {', '.join(dict.fromkeys(layers.values())) or 'none'}"
            )
        targets |= found
    return [name for name in layers if name in targets]


def add_lora(
    backbone: nn.Module, lora_rank: int, lora_alpha: float, lora_dropout: float, roles: Sequence[str], seed: int
) -> PeftModel:
    """Adds LoRA to the layers that play the roles and makes it, and a classification head, all that trains.

    A is drawn as PEFT does (Kaiming uniform) from `seed` alone, B is zero; the global random state stays as it is.
    What trains is float32 even on a bfloat16 backbone. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large
    Language Models", section 4.

    Args:
        backbone: the frozen model; it is changed in place.
        lora_rank: R, the inner dimension of A (R, D_in) and B (D_out, R).
        lora_alpha: B A is scaled by lora_alpha / lora_rank.
        lora_dropout: the dropout before A, in [0, 1).
        roles: some of `ROLES`.
        seed: what A is drawn from.

    Returns:
        The model, in the mode (training or evaluation) that the backbone was in.

    Raises:
        ConfigurationError: if a number is out of its range or the roles do not resolve (`resolve_targets`).
    """
    _require_ranges(lora_rank, lora_alpha, lora_dropout)
    targets = resolve_targets(backbone, roles)
    head = head_modules(backbone)
    config = LoraConfig(
        r=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=targets,
        modules_to_save=head or None,
        bias="none",
        fan_in_fan_out=any(isinstance(backbone.get_submodule(name), Conv1D) for name in targets),
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed CUDA's generators too, which the fork above does not restore.
        torch.default_generator.manual_seed(seed)
        model = get_peft_model(backbone, config)
    _train_in_full_precision(model, head)
    return model.train(backbone.training)


def add_zero_adapter(backbone: nn.Module, seed: int) -> PeftModel:
    """Adds LoRA that stays zero, for methods that train something else and still leave a PEFT folder.

    Args:
        backbone: the frozen model; it is changed in place.
        seed: what A is drawn from.

    Returns:
        The model; of what it holds, the head alone trains.
    """
    for role in ROLES:
        with suppress(ConfigurationError):
            resolve_targets(backbone, [role])
            break
    model = add_lora(backbone, 1, 1.0, 0.0, [role], seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(False)
    return model


def unfreeze_backbone(model: PeftModel) -> PeftModel:
    """Makes every weight of the backbone train, in float32 at least; of a head that PEFT copied the copy alone."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and ".original_module." not in name and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.requires_grad_(True)
    return model


def export_backbone(model: PeftModel, folder: Path) -> None:
    """Writes the backbone as it is now, without its adapter: what the adapter is loaded upon.

    Args:
        model: what `add_lora` returned; it stays as it is, at the price of a second copy in memory.
        folder: the folder to write, whole or not at all; what it held is replaced.
    """
    plain = copy.deepcopy(model).unload()
    with quiet(), _replacing(folder) as draft:
        plain.save_pretrained(draft)


def export_adapter(model: PeftModel, folder: Path, base_path: str) -> None:
    """Writes the adapter and the head as a PEFT folder, whole or not at all.

    Args:
        model: what `add_lora` returned.
        folder: the folder to write; what it held is replaced.
        base_path: the backbone's path or hub id, for PEFT to find it by.
    """
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = base_path
    config.inference_mode = True
    # PEFT keeps the names as a set, whose order changes from process to process.
    config.target_modules = sorted(config.target_modules)
    base = type(model.get_base_model())
    # Copies, because safetensors refuses tensors that share memory, and the engine keeps them in one flat buffer.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    with _replacing(folder) as draft:
        # save_file would make it readable to its owner alone, whatever the umask.
        (draft / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        config.save_pretrained(str(draft), auto_mapping_dict=mapping)


def merge_and_save(model: PeftModel, folder: Path) -> None:
    """Writes a plain transformers model that has the adapter merged into its weights, and the trained head.

    Args:
        model: what `add_lora` returned; it stays as it is, at the price of a second copy in memory.
        folder: the folder to write, whole or not at all; what it held is replaced.
    """
    merged = copy.deepcopy(model).merge_and_unload()
    with quiet(), _replacing(folder) as draft:
        merged.save_pretrained(draft)


def _linear_layers(backbone: nn.Module) -> dict[str, str]:
    """Every linear layer outside the head: its full name, and that name with layer numbers written as *."""
    head = tuple(f"{name}." for name in head_modules(backbone))
    return {
        name: re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not f"{name}.".startswith(head)
    }


def _require_ranges(lora_rank: int, lora_alpha: float, lora_dropout: float) -> None:
    if lora_rank < 1:
        raise ConfigurationError(f"lora_rank is {lora_rank}; expected a whole number of at least 1")
    if not lora_alpha > 0:
        raise ConfigurationError(f"lora_alpha is {lora_alpha:g}; expected a number above 0")
    if not 0 <= lora_dropout < 1:
        raise ConfigurationError(f"lora_dropout is {lora_dropout:g}; expected a number in [0, 1)")


def _train_in_full_precision(model: PeftModel, head: list[str]) -> None:
    """Lifts what trains to float32, and what a lifted head is given: PEFT does both for LoRA, neither for the head."""
    for name in head:
        trained = model.get_base_model().get_submodule(name).modules_to_save["default"]
        half = [parameter for parameter in trained.parameters() if parameter.dtype.itemsize < 4]
        for parameter in half:
            parameter.data = parameter.data.float()
        if half:
            trained.register_forward_pre_hook(_lift_inputs)


def _lift_inputs(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place on leaving, or vanishes on an error."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    draft, former = workshop / "draft", workshop / "former"
    try:
        draft.mkdir()
        yield draft
        if folder.exists():
            os.rename(folder, former)
        os.rename(draft, folder)
    finally:
        if former.exists() and not folder.exists():
            os.rename(former, folder)
        shutil.rmtree(workshop, ignore_errors=True)
