"""The tasks of a backbone with a head: one label an example, or any number of them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data import Batch
from fedsim.errors import unknown_name

Score = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, labels) and labels to one number."""


def _multiclass(kind: str, average: str) -> Score:
    def score(logits: Tensor, labels: Tensor) -> Tensor:
        from torchmetrics.functional import classification

        found: Tensor = getattr(classification, f"multiclass_{kind}")(logits, labels, logits.shape[-1], average=average)
        return found

    return score


def _binary_f1(logits: Tensor, labels: Tensor) -> Tensor:
    from torchmetrics.functional.classification import binary_f1_score

    said, there = logits.argmax(-1) == 1, labels == 1
    # Rows without label 1 in which nobody says it are no failure to find it.
    return binary_f1_score(said, there) if (said | there).any() else torch.tensor(torch.nan)


def _matthews(logits: Tensor, labels: Tensor) -> Tensor:
    from torchmetrics.functional.classification import multiclass_matthews_corrcoef

    return multiclass_matthews_corrcoef(logits, labels, logits.shape[-1])


CLASSIFICATION_METRICS: dict[str, Score] = {
    "accuracy": _multiclass("accuracy", "micro"),
    "f1": _binary_f1,
    "macro_f1": _multiclass("f1_score", "macro"),
    "matthews": _matthews,
}


class Classification:
    """One label an example, by cross-entropy over the logits of a backbone with a head.

    Args:
        metrics: some of `CLASSIFICATION_METRICS`, the main one first; f1 is of label 1 against all others.

    Raises:
        ConfigurationError: for an unknown metric.
    """

    def __init__(self, metrics: Sequence[str] = ("accuracy",)) -> None:
        self._scores = _chosen(metrics, CLASSIFICATION_METRICS)
        self.higher_is_better: Mapping[str, bool] = {**dict.fromkeys(metrics, True), "loss": False}

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the cross-entropy of each row, (B,)."""
        return functional.cross_entropy(_logits(backbone, batch), batch["labels"], reduction="none")

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the logits, (B, labels), and the labels, (B,)."""
        return {"logits": _logits(backbone, batch), "labels": batch["labels"]}

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the metrics that were asked for, and the mean loss."""
        logits, labels = outputs["logits"], outputs["labels"]
        found = {name: float(score(logits, labels)) for name, score in self._scores.items()}
        return {**found, "loss": float(functional.cross_entropy(logits, labels))}

    def by_class(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the accuracy among the rows of each class, (labels,)."""
        return accuracy_by_class(outputs["logits"], outputs["labels"])

    def places(self, columns: Mapping[str, Tensor]) -> int:
        """Returns one."""
        return 1


def _multilabel(kind: str, average: str) -> Score:
    def score(logits: Tensor, labels: Tensor) -> Tensor:
        from torchmetrics.functional import classification

        # As probabilities, since torchmetrics takes logits for such only where one lies outside of 0 to 1.
        compute = getattr(classification, f"multilabel_{kind}")
        found: Tensor = compute(logits.double().sigmoid(), labels, logits.shape[-1], average=average)
        return found

    return score


def _macro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the labels that occur or are said, in a large split all; torchmetrics counts others as 0."""
    found = _multilabel("f1_score", "none")(logits, labels)
    return found[((labels == 1) | (logits > 0)).any(0)].mean()


def _average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the labels that occur; torchmetrics warns of the others and counts them as zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = _multilabel("average_precision", "none")(logits, labels)
    return found[labels.sum(0) > 0].mean()


MULTI_LABEL_METRICS: dict[str, Score] = {
    "macro_f1": _macro_f1,
    "micro_f1": _multilabel("f1_score", "micro"),
    "average_precision": _average_precision,
}


class MultiLabel:
    """Any number of labels an example, each by its own binary cross-entropy; a label is said from probability 0.5 on.

    Source: Song et al. 2022, FLAIR, Section 4: macro and micro F1, and average precision, averaged over labels.

    Args:
        metrics: some of `MULTI_LABEL_METRICS`, the main one first.

    Raises:
        ConfigurationError: for an unknown metric.
    """

    def __init__(self, metrics: Sequence[str] = tuple(MULTI_LABEL_METRICS)) -> None:
        self._scores = _chosen(metrics, MULTI_LABEL_METRICS)
        self.higher_is_better: Mapping[str, bool] = {**dict.fromkeys(metrics, True), "loss": False}

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the binary cross-entropy of each row, its mean over labels, (B,)."""
        return self._losses(_logits(backbone, batch), batch["labels"]).mean(-1)

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns logits and labels, (B, labels) each."""
        return {"logits": _logits(backbone, batch), "labels": batch["labels"].long()}

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the metrics that were asked for, and the mean loss."""
        logits, labels = outputs["logits"], outputs["labels"]
        found = {name: float(score(logits, labels)) for name, score in self._scores.items()}
        return {**found, "loss": float(self._losses(logits, labels).mean())}

    def by_class(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the F1 of each label, (labels,)."""
        found = _multilabel("f1_score", "none")(outputs["logits"], outputs["labels"])
        return found.masked_fill(outputs["labels"].sum(0) == 0, torch.nan)

    def places(self, columns: Mapping[str, Tensor]) -> int:
        """Returns one."""
        return 1

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")


def accuracy_by_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the accuracy among the rows of each label (N, labels) to (labels,), NaN where there are none."""
    found = _multiclass("accuracy", "none")(logits, labels)
    return found.masked_fill(torch.bincount(labels, minlength=logits.shape[-1]) == 0, torch.nan)


def _chosen(names: Sequence[str], known: Mapping[str, Score]) -> dict[str, Score]:
    for name in names:
        if name not in known:
            raise unknown_name("metric", name, known)
    return {name: known[name] for name in names}


def _logits(backbone: nn.Module, batch: Batch) -> Tensor:
    """A head's logits, (B, labels), at least in float32."""
    inputs: dict[str, Any] = {name: column for name, column in batch.items() if name not in ("labels", "weight")}
    size = getattr(getattr(backbone, "config", None), "image_size", None)
    if "pixel_values" in inputs and size not in (None, inputs["pixel_values"].shape[-1]):
        inputs["interpolate_pos_encoding"] = True  # images of another size than the backbone was pretrained on
    return at_least_float32(backbone(**inputs).logits)


def at_least_float32(logits: Tensor) -> Tensor:
    """Losses and probabilities of 16-bit logits are taken in 32 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
