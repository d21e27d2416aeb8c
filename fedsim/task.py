"""What the model learns: losses for training, outputs and metrics for evaluation, which way is better."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data import Batch
from fedsim.errors import unknown_name

IGNORED = -100
"""The token label of a place where nothing is to be predicted, as in transformers and torch."""


class Task(Protocol):
    """One kind of task. Everything is per example, so that padding and sharding change nothing."""

    higher_is_better: Mapping[str, bool]

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the loss of each row, (B,), differentiable."""

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns what the metrics need of each row, (B, ...) each."""

    def metrics(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> dict[str, float]:
        """Reduces the outputs of a whole split, (N, ...), and its columns, (N, ...), to named numbers."""


class Classification:
    """One label an example, by cross-entropy over the logits of a backbone with a head."""

    higher_is_better: Mapping[str, bool] = {"accuracy": True, "loss": False}

    def _logits(self, backbone: nn.Module, batch: Batch) -> Tensor:
        inputs: dict[str, Any] = {name: column for name, column in batch.items() if name not in ("labels", "weight")}
        size = getattr(getattr(backbone, "config", None), "image_size", None)
        if "pixel_values" in inputs and size not in (None, inputs["pixel_values"].shape[-1]):
            inputs["interpolate_pos_encoding"] = True  # images of another size than the backbone was pretrained on
        logits: Tensor = backbone(**inputs).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the cross-entropy of each row, (B,)."""
        return functional.cross_entropy(self._logits(backbone, batch), batch["labels"], reduction="none")

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the logits, (B, labels)."""
        return {"logits": self._logits(backbone, batch)}

    def metrics(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the accuracy, in [0, 1], and the mean loss."""
        from torchmetrics.functional.classification import multiclass_accuracy

        logits, labels = outputs["logits"], columns["labels"]
        accuracy = multiclass_accuracy(logits, labels, num_classes=logits.shape[-1], average="micro")
        return {"accuracy": float(accuracy), "loss": float(functional.cross_entropy(logits, labels))}


class TextToText:
    """An answer in words, by cross-entropy over the vocabulary of a language model; nothing else is predicted.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".

    A batch has the answer's tokens as labels (B, K), -100 where there is none, and the answer itself, masked behind its
    end, as the last K columns of input_ids (B, T).
    """

    higher_is_better: Mapping[str, bool] = {"accuracy": True, "loss": False}

    def _logits(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """The logits that predict the answer's tokens, (B, vocabulary, K); the vocabulary is large, so only these."""
        answer = batch["labels"].shape[1]
        logits: Tensor = backbone(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=(batch["attention_mask"].cumsum(1) - 1).clamp(min=0),  # counted from where a row begins
            logits_to_keep=answer + 1,
        ).logits[:, :-1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
        return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of each row's answer, (B,)."""
        return self._losses(self._logits(backbone, batch), batch["labels"])

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the likeliest token at each place of the right answer, (B, K), and the losses, (B,)."""
        logits = self._logits(backbone, batch)
        return {"tokens": logits.argmax(1), "losses": self._losses(logits, batch["labels"])}

    def metrics(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the accuracy, in [0, 1], and the mean loss.

        An answer counts where every token and the end are right; that is when greedy decoding would write it.
        """
        from torchmetrics.functional.classification import multiclass_exact_match

        tokens, labels = outputs["tokens"], columns["labels"]
        vocabulary = int(torch.maximum(tokens.max(), labels.max())) + 1
        accuracy = multiclass_exact_match(tokens, labels, max(vocabulary, 2), ignore_index=IGNORED)
        return {"accuracy": float(accuracy), "loss": float(outputs["losses"].mean())}


_TASKS: dict[str, type[Any]] = {
    "image_classification": Classification,
    "text_classification": Classification,
    "text_to_text": TextToText,
}


def task_named(name: str) -> Task:
    """Returns the task that a data set names.

    Raises:
        ConfigurationError: no task goes by that name.
    """
    if name not in _TASKS:
        raise unknown_name("task", name, _TASKS)
    task: Task = _TASKS[name]()
    return task
