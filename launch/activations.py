"""What of a forward is kept: nothing of the backbone's layers, or, once for all, what the head reads."""

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from data_partitions.dataset import FederatedData
from fedsim.client import Autocast
from fedsim.data import Examples
from fedsim.errors import ConfigurationError
from fedsim.evaluation import Evaluator
from fedsim.features import FeaturesOf, cached
from fedsim.parameters import FlatParameters
from fedsim.task import Task
from fedsim.transport import Workers


def checkpoint_activations(model: nn.Module) -> None:
    """Lets the backbone's layers compute again, in the backward pass, what they would keep for it.

    Args:
        model: the adapted backbone.

    Raises:
        ConfigurationError: it is of a kind that cannot.
    """
    backbone: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    try:
        # Newer transformers renamed it; the older name warns there.
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"client.checkpoint_activations: {type(backbone).__name__} cannot ({error}); leave it out"
        ) from error


def require_the_same_examples(data: FederatedData) -> None:
    """Refuses data whose examples are augmented, as their features are not the same whenever they are trained on."""
    if data.draw(np.random.default_rng(0), (1, 1)):
        raise ConfigurationError(
            f"client.cache_features is true, but {type(data).__name__} augments its examples anew whenever they are "
            "trained on; turn that off, or leave it out"
        )


def cache_features(
    model: nn.Module,
    parameters: FlatParameters,
    task: Task,
    splits: tuple[Examples, Examples],
    batch_size: int,
    autocast: Autocast,
    workers: Workers,
) -> tuple[Examples, Examples]:
    """Computes what the head reads of every example, and makes the model its head.

    Args:
        model: the adapted backbone.
        parameters: its trainable parameters, which must be a head's.
        task: what it learns.
        splits: of training and test.
        batch_size: examples a forward; part of the bits.
        autocast: makes the precision context of a forward.
        workers: the processes of the run, which share the work.

    Returns:
        Both splits as features.

    Raises:
        ConfigurationError: more than a head trains, or the head is not the last thing that the model does.
    """
    reader = FeaturesOf(task, parameters.layout)
    evaluators = [Evaluator(model, parameters, reader, split, batch_size, autocast) for split in splits]
    vector = parameters.vector.clone()
    train, test = (
        cached(evaluator, split, vector, workers) for evaluator, split in zip(evaluators, splits, strict=True)
    )
    some = torch.zeros(2, dtype=torch.long, device=splits[1].device)
    with torch.no_grad(), autocast():
        reader.leave_the_head(model, splits[1].batch(some))
    return train, test
