"""Evaluation client by client, each on examples of its own that nobody trains on."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.evaluation import Evaluator, gather_rows
from fedsim.transport import Workers

EXTREME = 0.1
"""The fraction of clients at either end of the distribution whose mean is reported."""


class ClientEvaluator:
    """Evaluates some clients on the examples that they keep from training.

    The clients are the same all run long, and so are their examples. What is reported of the distribution is the main
    metric's mean over clients, each counting the same, and its mean over the tenth of them that is worst and best off.

    Args:
        evaluator: of the training split, where the held-out examples are.
        rows: the held-out rows of each evaluated client, (n,) int64 with n at least 1, by client.
        device: where the examples are.
    """

    def __init__(self, evaluator: Evaluator, rows: Mapping[int, np.ndarray], device: torch.device) -> None:
        self._evaluator = evaluator
        self._rows = {client: torch.from_numpy(own.copy()).to(device) for client, own in rows.items()}
        self._device = device
        self._metric, self._higher = next(iter(evaluator.task.higher_is_better.items()))

    @property
    def clients(self) -> Sequence[int]:
        """Who is evaluated, rising."""
        return list(self._rows)

    def evaluate(self, vector: Tensor, workers: Workers) -> dict[str, float]:
        """Evaluates one vector on all clients. Every worker must call it, with the same vector.

        Args:
            vector: (P,).
            workers: who shares the work.

        Returns:
            held_out/METRIC of all their examples together, and clients/METRIC, _worst_10 and _best_10.
        """
        pooled = self._evaluator.evaluate(vector, workers, torch.cat(list(self._rows.values())))
        together = {f"held_out/{name}": value for name, value in pooled.metrics.items()}
        return together | self._distribution("clients", pooled.outputs)

    def evaluate_each(self, view: str, vectors: Iterable[tuple[int, Tensor]], workers: Workers) -> dict[str, float]:
        """Evaluates a vector of each client's own. Every worker must call it.

        Args:
            view: what the metrics are called.
            vectors: (position, (P,)) of this worker's clients, which are those at position rank, rank + count, ... of
                `clients`. Between two of them the backbone's parameters are loaded anew.
            workers: who shares the work.

        Returns:
            VIEW/METRIC, _worst_10 and _best_10.
        """
        found: dict[int, dict[str, Tensor]] = {}
        for position, vector in vectors:
            cut = self._rows[self.clients[position]].split(self._evaluator.batch_size)
            parts = list(self._evaluator.outputs(vector, cut))
            found[position] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        lengths = [len(own) for own in self._rows.values()]
        outputs = gather_rows([found[at] for at in sorted(found)], lengths, workers, self._device)
        return self._distribution(view, outputs)

    def _distribution(self, view: str, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """The main metric of each client, reduced over them."""
        lengths = [len(own) for own in self._rows.values()]
        parts = {name: value.split(lengths) for name, value in outputs.items()}
        values = np.array(
            [
                self._evaluator.task.metrics({name: part[at] for name, part in parts.items()})[self._metric]
                for at in range(len(lengths))
            ]
        )
        # A client on whose examples the metric says nothing is left out: no text of two tokens, no label to find.
        known = values[~np.isnan(values)]
        known = known if len(known) else values
        ordered = np.sort(known)[:: 1 if self._higher else -1]  # worst first
        few = max(1, round(EXTREME * len(known)))
        name = f"{view}/{self._metric}"
        return {
            name: float(known.mean()),
            f"{name}_worst_10": float(ordered[:few].mean()),
            f"{name}_best_10": float(ordered[-few:].mean()),
        }
