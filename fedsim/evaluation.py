"""Evaluation of a view over a whole split: sharded over the workers, with the same bits for any number of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.data import Examples
from fedsim.parameters import FlatParameters
from fedsim.task import Task
from fedsim.transport import Workers


@dataclass(frozen=True)
class Evaluation:
    """What one view is worth.

    Attributes:
        metrics: by name.
        outputs: the task's outputs for every example of the split, (N, ...) each.
    """

    metrics: dict[str, float]
    outputs: dict[str, Tensor]


class Evaluator:
    """Evaluates vectors on one split.

    A worker takes every so-manieth batch of a fixed cut, so a batch's bits do not depend on the number of workers;
    the outputs, zero where another worker computed them, add up exactly.

    Args:
        backbone: the adapted backbone.
        parameters: its trainable parameters.
        task: what it learns.
        examples: the split.
        batch_size: examples a forward; part of the bits.
        autocast: makes the precision context of a forward.
    """

    def __init__(
        self,
        backbone: nn.Module,
        parameters: FlatParameters,
        task: Task,
        examples: Examples,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._backbone = backbone
        self._parameters = parameters
        self._task = task
        self._examples = examples
        self._batch_size = batch_size
        self._autocast = autocast

    @torch.no_grad()
    def evaluate(self, vector: Tensor, workers: Workers) -> Evaluation:
        """Evaluates one vector. Every worker must call it, with the same vector.

        Args:
            vector: (P,).
            workers: who shares the work.

        Returns:
            Metrics and outputs, on every worker.
        """
        self._parameters.load(vector)
        self._backbone.eval()
        rows = torch.arange(len(self._examples), device=self._examples.device)
        outputs: dict[str, Tensor] = {}
        for number, batch_rows in enumerate(rows.split(self._batch_size)):
            # Every worker needs the shapes, so each computes the first batch; only one counts it.
            if number and number % workers.count != workers.rank:
                continue
            with self._autocast():
                found = self._task.outputs(self._backbone, self._examples.batch(batch_rows))
            for name, value in found.items():
                whole = outputs.setdefault(name, value.new_zeros((len(rows), *value.shape[1:])))
                if number % workers.count == workers.rank:
                    whole[batch_rows] = value
        outputs = {name: workers.sum(value) for name, value in outputs.items()}
        return Evaluation(self._task.metrics(outputs, self._examples.columns), outputs)
