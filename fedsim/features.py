"""What never changes is computed once: where only a head trains, the features below it, for every example.

The model keeps its parameters and their names; from then on its forward is its head's alone, and the examples are their
features.
"""

from collections.abc import Mapping
from functools import partial
from itertools import takewhile
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from fedsim.data import Batch, Examples
from fedsim.errors import ConfigurationError
from fedsim.evaluation import Evaluator
from fedsim.parameters import Layout
from fedsim.task import Task
from fedsim.transport import Workers


class FeaturesOf:
    """A task for `Evaluator` in whose outputs stand the features of each row and its labels, in place of logits.

    Args:
        task: what is learned; it calls the backbone.
        layout: of what trains, which must be a head.

    Raises:
        ConfigurationError: something trains that is no head.
    """

    higher_is_better: Mapping[str, bool] = {}

    def __init__(self, task: Task, layout: Layout) -> None:
        for entry in layout.entries:
            if entry.segment != "head":
                raise ConfigurationError(
                    f"client.cache_features is true, but {entry.name} trains, and with it what lies below the head "
                    "changes; expected a method that trains the head alone, such as LinearProbe, or leave it out"
                )
        levels = zip(*(entry.name.split(".")[:-1] for entry in layout.entries), strict=False)
        self.head = ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
        self._task = task

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the task's own."""
        return self._task.example_losses(backbone, batch)

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns what the head reads, (B, D), and the labels."""
        read: list[Tensor] = []
        head = backbone.get_submodule(self.head)
        hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0] if inputs else torch.empty(0)))
        try:
            self._task.outputs(backbone, batch)
        finally:
            hook.remove()
        if len(read) != 1 or read[0].ndim != 2:
            shapes = ", ".join(str(tuple(found.shape)) for found in read)
            raise ConfigurationError(
                f"client.cache_features is true, but the backbone's head reads {shapes} for {len(batch['labels'])} "
                "examples; expected a row of features for each, or leave it out"
            )
        return {"features": read[0], "labels": batch["labels"]}

    def leave_the_head(self, model: nn.Module, batch: Batch) -> None:
        """Turns a model into its head, which reads features from now on.

        Args:
            model: the adapted backbone.
            batch: some examples, on which the outputs must stay as they are.

        Raises:
            ConfigurationError: the model does more with what its head gives than hand it on.
        """
        features, expected = self.outputs(model, batch), self._task.outputs(model, batch)
        model.forward = partial(_forward, model, self.head)
        found = self._task.outputs(model, features)
        if any(not torch.equal(value, found[name]) for name, value in expected.items()):
            del model.forward
            raise ConfigurationError(
                "client.cache_features is true, but the backbone changes what its head gives; leave it out"
            )

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns none."""
        return {}

    def by_class(self, outputs: Mapping[str, Tensor]) -> None:
        """Returns none."""

    def places(self, columns: Mapping[str, Tensor]) -> int:
        """Returns the task's own."""
        return self._task.places(columns)


def cached(evaluator: Evaluator, examples: Examples, vector: Tensor, workers: Workers) -> Examples:
    """Computes the features of a split, each worker a part of them.

    Args:
        evaluator: of `FeaturesOf` on these examples.
        examples: the split.
        vector: (P,), any.
        workers: the processes of the run; all call this.

    Returns:
        The same rows, as columns `features` (N, D) and `labels` (N, ...).
    """
    return examples.seen_as(evaluator.evaluate(vector, workers).outputs)


def _forward(model: nn.Module, head: str, features: Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=model.get_submodule(head)(features))
