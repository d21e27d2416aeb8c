"""The same round of local work, done by a bare training loop and by the engine, on the same model and batches.

Every contestant trains the same clients on the same rows from the same start and returns the mean update, so that
equal work is checked before anything is timed.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_partitions.digits import Digits
from data_partitions.iid import IID
from fedsim.backbone import load_backbone
from fedsim.client import ClientModule, SequentialTrainer
from fedsim.data import Examples
from fedsim.evaluation import Evaluator
from fedsim.optimizers import SGD
from fedsim.options import ClientOptions, CommunicationOptions, RunOptions, ServerOptions
from fedsim.packed import PackedTrainer
from fedsim.parameters import FlatParameters
from fedsim.sampling import local_batches, sample_cohort
from fedsim.seeding import Purpose, generator
from fedsim.server import initial_state
from fedsim.simulation import Experiment, run_round
from fedsim.task import Classification
from fedsim.transport import Workers
from launch.registry import BACKBONES
from methods.lora import LoRA

Round = Callable[[int], Tensor]
"""Trains the cohort of a round from the common start; returns the mean update, (P,)."""

_LR, _MOMENTUM = 2e-2, 0.9
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """One size of work.

    Attributes:
        name: what the table calls it.
        batch_size: examples a step.
        clients: trained a round.
        steps: local steps of each.
    """

    name: str
    batch_size: int
    clients: int = 10
    steps: int = 5


WORKS = (Work("tiny ViT, batch 16", 16), Work("tiny ViT, batch 4", 4))


class Arena:
    """Builds contestants for one work: each gets a model of its own, from the same weights.

    Args:
        work: the size of the work.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._data = Digits().load()
        labels = self._data.train["labels"].numpy()
        # Enough examples a client that every one of its steps is full.
        clients = min(100, len(labels) // (work.batch_size * work.steps))
        self._partition = IID(clients).split(labels, None, np.random.default_rng(0))

    @property
    def steps(self) -> int:
        """Client steps a round."""
        return self._work.clients * self._work.steps

    def contestant(self, who: str) -> Round:
        """Builds one of `WHO`."""
        return WHO[who](self)

    def model(self) -> nn.Module:
        """Loads and adapts the backbone."""
        data = self._data
        backbone = load_backbone(str(BACKBONES / "glyphs"), data.task, data.label_names)
        return LoRA(lora_rank=8).setup(backbone, seed=0)

    def batches(self, round: int) -> Iterator[np.ndarray]:
        """Yields (steps, batch_size) rows of each client of the round's cohort."""
        cohort = sample_cohort(generator(0, Purpose.COHORT, round), self._partition.clients, self._work.clients)
        for client in cohort:
            random = generator(0, Purpose.BATCHES, round, client)
            yield local_batches(random, self._partition.of(client), self._work.batch_size, 1, self._work.steps)

    def loop(self, model: nn.Module, round: int, prepare: Callable[[nn.Module], nn.Module]) -> Tensor:
        """The bare training loop: plain PyTorch, an optimiser a client, nothing around it.

        Args:
            model: at the common start.
            round: which cohort.
            prepare: returns the model that a client trains, at the start.
        """
        columns, total = self._data.train, torch.zeros(())
        start = _flat(model)
        for batches in self.batches(round):
            trained = prepare(model)
            optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], _LR, _MOMENTUM)
            for rows in torch.from_numpy(batches):
                optimizer.zero_grad()
                logits = trained(pixel_values=columns["pixel_values"][rows]).logits
                functional.cross_entropy(logits, columns["labels"][rows]).backward()
                optimizer.step()
            total = total + (start - _flat(trained))
        return total / self._work.clients

    def engine(self, slots: int) -> Round:
        """The engine's whole round: sampling, encoding, decoding and the server's step included."""
        model = self.model()
        parameters = FlatParameters(model)
        task, data = Classification(), self._data
        train = Examples(data, data.train, _CPU, torch.float32)
        module = ClientModule(model, task)
        parts = (module, parameters, train, SGD(_LR, _MOMENTUM), None, nullcontext)
        trainer = SequentialTrainer(*parts) if slots == 1 else PackedTrainer(*parts, slots)
        experiment = Experiment(
            method=LoRA(),
            data=data,
            partition=self._partition,
            parameters=parameters,
            trainer=trainer,
            evaluator=Evaluator(model, parameters, task, train, 256, nullcontext),
            client=ClientOptions(batch_size=self._work.batch_size, max_steps=self._work.steps),
            server=ServerOptions(optimizer="sgd", lr=1.0),
            communication=CommunicationOptions(),
            run=RunOptions(rounds=1, cohort_size=self._work.clients),
        )
        start, workers = parameters.vector.clone(), Workers(0, 1, _CPU)

        def train_round(round: int) -> Tensor:
            parameters.vector.copy_(start)
            state = initial_state(parameters, experiment.server)
            run_round(experiment, state, round, workers, None)
            return start - state.vector.detach()

        return train_round


def _bare(arena: Arena) -> Round:
    model = arena.model()
    start = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    def reset(model: nn.Module) -> nn.Module:
        for parameter, value in zip((p for p in model.parameters() if p.requires_grad), start, strict=True):
            parameter.data.copy_(value)
        return model

    return lambda round: arena.loop(reset(model), round, reset)


def _deep_copy(arena: Arena) -> Round:
    model = arena.model()
    return lambda round: arena.loop(model, round, copy.deepcopy)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


WHO: dict[str, Callable[[Arena], Round]] = {
    "bare": _bare,
    "deep_copy": _deep_copy,
    "fedsim_sequential": lambda arena: arena.engine(1),
    "fedsim_packed": lambda arena: arena.engine(10),
}
