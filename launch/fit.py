"""Whether data and backbone fit together, asked before anything is written."""

import torch
from lightning.fabric import Fabric
from torch import nn
from transformers import PreTrainedModel

from data_partitions.dataset import FederatedData
from fedsim.data import Examples
from fedsim.errors import ConfigurationError
from fedsim.task import Task
from launch.configuration import Settings


def try_one_example(
    settings: Settings, model: nn.Module, task: Task, train: Examples, test: Examples, fabric: Fabric
) -> None:
    """Refuses data that the backbone cannot read or the task cannot score, before anything is written."""
    row = torch.zeros(1, dtype=torch.long, device=fabric.device)
    try:
        with torch.no_grad(), fabric.autocast():
            task.example_losses(model, train.batch(row))
            outputs = task.outputs(model, test.batch(row))
            task.metrics(outputs)
            task.by_class(outputs)
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"the backbone {settings.backbone_path} cannot read {type(settings.data).__name__}, or its task "
            f"{type(task).__name__} cannot be scored ({type(error).__name__}: {reason}); give another --backbone.path "
            "or --data"
        ) from error


def check_tokens(data: FederatedData, backbone: PreTrainedModel) -> None:
    """Refuses texts that the backbone has no embeddings for; it would fail deep inside, on CUDA without a word."""
    if "input_ids" not in data.train:
        return
    known = backbone.get_input_embeddings().num_embeddings
    longest = _longest_text(backbone)
    for split, tokens in (("train", data.train["input_ids"]), ("test", data.test["input_ids"])):
        largest = max(int(tokens.max()), data.pad_token_id or 0)
        if largest >= known:
            raise ConfigurationError(
                f"{split} has token {largest}, but the backbone {backbone.name_or_path} knows 0 to {known - 1}; "
                "give the backbone's own tokenizer to data.tokenizer"
            )
        if longest is not None and tokens.shape[1] > longest:
            raise ConfigurationError(
                f"{split} has texts of {tokens.shape[1]} tokens, but the backbone {backbone.name_or_path} reads at "
                f"most {longest}; lower data.max_length"
            )
    if longest is not None and data.writing is not None:
        _check_written(data, data.writing.max_new_tokens, longest, backbone.name_or_path)


def _check_written(data: FederatedData, max_new_tokens: int, longest: int, name: str) -> None:
    """Refuses answers that would be written past the backbone's last position, however short the given ones are."""
    asked = data.test["input_ids"].shape[1] - data.test["labels"].shape[1]
    if asked + max_new_tokens > longest:
        raise ConfigurationError(
            f"test has questions of {asked} tokens, behind which answers of up to {max_new_tokens} are written, but "
            f"the backbone {name} reads at most {longest}; lower data.max_new_tokens or data.max_length"
        )


def _longest_text(backbone: PreTrainedModel) -> int | None:
    """The most tokens that a backbone has positions for; RoBERTa counts them from behind its padding token."""
    positions: int | None = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    paddings = [
        module.padding_idx
        for name, module in backbone.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return positions if positions is None or not paddings else positions - paddings[0] - 1
