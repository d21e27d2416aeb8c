"""What the model learns: losses for training, outputs and metrics for evaluation, which way is better.

The tasks themselves stand in `classification.py` and `language.py`.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from fedsim.classification import Classification, MultiLabel
from fedsim.data import Batch, FederatedData
from fedsim.errors import unknown_name
from fedsim.language import IGNORED, Generation, LanguageModelling, TextToText


class Task(Protocol):
    """One kind of task. Everything is per example, so that padding and sharding change nothing."""

    higher_is_better: Mapping[str, bool]
    """By metric, the main one first."""

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the loss of each row, (B,), differentiable."""

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns all that the metrics need of each row, (B, ...) each."""

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Reduces the outputs of any number of rows, (N, ...), to numbers, named as in `higher_is_better`."""

    def by_class(self, outputs: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the main metric of each class alone, (labels,), NaN for one without rows; None without classes."""

    def places(self, columns: Mapping[str, Tensor]) -> int:
        """Returns how many rows of logits an example of these columns takes, by which batches are kept small."""


_TASKS: dict[str, Callable[[FederatedData], Task]] = {
    "image_classification": lambda data: Classification(data.metrics or ("accuracy",)),
    "text_classification": lambda data: Classification(data.metrics or ("accuracy",)),
    "multi_label_image_classification": lambda data: MultiLabel(
        data.metrics or ("macro_f1", "micro_f1", "average_precision")
    ),
    "language_modelling": lambda data: LanguageModelling(),
    "text_to_text": lambda data: TextToText(_as_labels(data)),
    "generation": lambda data: Generation(data.writing, data.metrics or ("exact_match",)),
}


def task_of(data: FederatedData) -> Task:
    """Returns the task that a data set names, with the metrics, choices and judge that it brings.

    Raises:
        ConfigurationError: no task or metric goes by the name.
    """
    if data.task not in _TASKS:
        raise unknown_name("task", data.task, _TASKS)
    return _TASKS[data.task](data)


def _as_labels(data: FederatedData) -> Tensor | None:
    """The choices as token labels are written: -100 behind an answer's end."""
    if data.choices is None:
        return None
    choices = torch.from_numpy(data.choices).long()
    return choices.masked_fill(choices < 0, IGNORED)
