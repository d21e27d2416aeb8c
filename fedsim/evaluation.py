"""Evaluation of a view over a whole split: sharded over the workers, with the same bits for any number of them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
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
        self.task = task
        self._examples = examples
        self.batch_size = batch_size
        self._autocast = autocast

    @torch.no_grad()
    def outputs(self, vector: Tensor, batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Computes what metrics need, here and now, for batches of rows; see `Task.outputs`.

        Args:
            vector: (P,), the parameters.
            batches: rows of the split, (B,) int64 each, on the device.

        Yields:
            The outputs of each batch, (B, ...) each.
        """
        self._parameters.load(vector)
        self._backbone.eval()
        for rows in batches:
            with self._autocast():
                found = self.task.outputs(self._backbone, self._examples.batch(rows, places=self._places(rows)))
            yield found

    def evaluate(self, vector: Tensor, workers: Workers, rows: Tensor | None = None) -> Evaluation:
        """Evaluates one vector. Every worker must call it, with the same arguments.

        Args:
            vector: (P,).
            workers: who shares the work.
            rows: of the split, (N,) int64 on the device; all where it is None.

        Returns:
            Metrics and outputs, on every worker.
        """
        if rows is None:
            rows = torch.arange(len(self._examples), device=self._examples.device)
        order = self._order(rows)
        cut = rows[order].split(self.batch_size)
        found = list(self.outputs(vector, cut[workers.rank :: workers.count]))
        outputs = gather_rows(found, [len(part) for part in cut], workers, self._examples.device)
        outputs = {name: torch.empty_like(value).index_copy_(0, order, value) for name, value in outputs.items()}
        return Evaluation(self.task.metrics(outputs), outputs)

    def _places(self, rows: Tensor) -> slice:
        """The places of their tokens; rows come back from the device only where that says something."""
        return slice(None) if self._examples.lengths is None else self._examples.places(rows.cpu().numpy())

    def _order(self, rows: Tensor) -> Tensor:
        """The order to evaluate rows in: texts of like length together, as a batch is as long as its longest."""
        lengths = self._examples.lengths
        if lengths is None:
            return torch.arange(len(rows), device=rows.device)
        return torch.from_numpy(np.argsort(lengths[rows.cpu().numpy()], kind="stable")).to(rows.device)


def gather_rows(
    found: Sequence[Mapping[str, Tensor]], lengths: Sequence[int], workers: Workers, device: torch.device
) -> dict[str, Tensor]:
    """Puts together what workers computed of a fixed cut, part i by worker i modulo their number; exact.

    Args:
        found: this worker's parts, in order, (length, ...) each.
        lengths: of all parts.
        workers: who computed them; the server worker at least one.
        device: where the whole is to be.

    Returns:
        The whole by name, (sum of lengths, ...), on every worker.
    """
    told = {
        name: [str(value.dtype).removeprefix("torch."), *value.shape[1:]] for name, value in (found or [{}])[0].items()
    }
    (layout,) = workers.broadcast([json.dumps(told).encode()] if workers.is_server else None)
    ends = list(accumulate(lengths, initial=0))
    mine = range(workers.rank, len(lengths), workers.count)
    outputs = {}
    for name, (dtype, *shape) in json.loads(layout).items():
        whole = torch.zeros((ends[-1], *shape), dtype=getattr(torch, dtype), device=device)
        for part, values in zip(mine, found, strict=True):
            whole[ends[part] : ends[part + 1]] = values[name]
        outputs[name] = workers.sum(whole)  # zero wherever another worker computed, so nothing is rounded
    return outputs
