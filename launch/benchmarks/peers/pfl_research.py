"""Apple's pfl-research: federated averaging as its users write it. Only a Python that has `pfl` imports this file.

Source: https://github.com/apple/pfl-research, whose own benchmarks are composed of the same parts.

A round is one central iteration of `FederatedAlgorithm.run`, which goes on where it stopped: pfl draws the cohort (the
engine's, by the sampler), makes each user's data set, trains user after user with a new optimiser each, sums their
differences, averages them and steps the central optimiser. Counted beside that are setting the model to the common
start and sending the update. pfl evaluates users in its first iteration, which is the warm-up, and never again.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from launch.benchmarks.local_work import LR, MOMENTUM, Arena, flat
from launch.benchmarks.peers.serve import Told


class Learner(nn.Module):
    """The adapted backbone with the two methods that pfl asks of a module.

    Args:
        arena: of the work.
    """

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self._arena = arena
        self.model = arena.model()

    def loss(self, **batch: Tensor) -> Tensor:
        """Computes what a local step lessens."""
        return self._arena.loss(self.model, batch)

    @torch.no_grad()
    def metrics(self, **batch: Tensor) -> dict[str, Any]:
        """Computes what pfl reports of a user."""
        rows = len(batch["labels"])
        return {"loss": Weighted(self.loss(**batch).item() * rows, rows)}


class Cohort:
    """The users of the told round, in turn.

    Args:
        arena: of the work.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._round = 0
        self._clients: Iterator[int] = iter(())

    def tell(self, round: int) -> None:
        """Goes on to the clients of another round."""
        self._round, self._clients = round, iter(self._arena.cohort(round))

    def sample(self) -> int:
        """Draws the next user, as pfl asks for it."""
        return next(self._clients)

    def data(self, client: int) -> PyTorchTensorDataset:
        """Makes a user's data set of this round: the rows of all its steps, which pfl cuts into batches again."""
        batches = list(self._arena.batches(self._round, client))
        return PyTorchTensorDataset({name: torch.cat([b[name] for b in batches]) for name in batches[0]}, str(client))


def serve(arena: Arena, told: Told) -> None:
    """Does the rounds that it is told."""
    work, learner, cohort = arena.work, Learner(arena), Cohort(arena)
    central = torch.optim.SGD(_trained(learner.parameters()), lr=1.0)
    model = PyTorchModel(learner, _optimizer, central, amp_dtype=torch.bfloat16 if work.bf16 else None)
    start = model.get_parameters()
    vector = flat(learner)
    users = FederatedDataset(cohort.data, cohort.sample)
    backend = SimulatedBackend(training_data=users, val_data=users)
    algorithm = FederatedAveraging()
    params = NNAlgorithmParams(
        central_num_iterations=0, evaluation_frequency=sys.maxsize, train_cohort_size=work.clients, val_cohort_size=0
    )
    local = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=work.batch_size)
    for iterations, round in enumerate(told, start=1):
        cohort.tell(round)
        model.set_parameters(start)
        algorithm.run(replace(params, central_num_iterations=iterations), backend, model, local)
        told.answer(vector - flat(learner))


def _optimizer(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.SGD:
    """Makes a user's optimiser, over what trains: given the frozen backbone, too, it would pass over it every step."""
    return torch.optim.SGD(_trained(parameters), lr, MOMENTUM)


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
