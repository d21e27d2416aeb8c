"""The same round of local work, done by a bare training loop and by the engine, on the same model and batches.

Every contestant trains the same clients on the same rows from the same start and returns the mean update, so that
equal work is checked before anything is timed.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_partitions.partitioners.iid import IID
from fedsim.classification import Classification
from fedsim.client import ClientModule, SequentialTrainer
from fedsim.data import Batch, Examples
from fedsim.evaluation import Evaluator
from fedsim.experiment import Experiment
from fedsim.frozen import FrozenBackbone
from fedsim.optimizers import SGD
from fedsim.options import ClientOptions, CommunicationOptions, EvaluationOptions, RunOptions, ServerOptions
from fedsim.packed import PackedTrainer
from fedsim.parameters import FlatParameters
from fedsim.sampling import local_batches, sample_cohort
from fedsim.seeding import Purpose, generator
from fedsim.server import initial_state
from fedsim.simulation import run_round
from fedsim.transport import Workers
from launch.benchmarks.two_workers import two_workers
from launch.benchmarks.works import Round, Work
from methods.lora import LoRA

_LR, _MOMENTUM = 2e-2, 0.9
_CPU = torch.device("cpu")
_ALONE = Workers(0, 1, _CPU)


class Arena:
    """Builds contestants for one work: each gets a model of its own, from the same weights.

    A context manager, because some contestants are processes: they end with it.

    Args:
        work: the size of the work.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._open = ExitStack()
        self._data = work.data()
        labels = self._data.train["labels"].numpy()
        # Enough examples a client that every one of its steps is full.
        clients = min(work.population, len(labels) // (work.batch_size * work.steps))
        self._partition = IID(clients).split(labels, None, np.random.default_rng(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def contestant(self, who: str) -> Round:
        """Builds one of `WHO`."""
        return WHO[who](self)

    def model(self) -> nn.Module:
        """Makes the adapted backbone."""
        return self._work.model(self._data)

    def batches(self, round: int, client: int) -> Iterator[Batch]:
        """Yields the batches of a client's steps, augmented by the same draws as in the engine."""
        data, work = self._data, self._work
        random = generator(0, Purpose.BATCHES, round, client)
        rows = local_batches(random, self._partition.of(client), work.batch_size, 1, work.steps)
        draws = data.draw(generator(0, Purpose.AUGMENTATION, round, client), rows.shape)
        for step, chosen in enumerate(torch.from_numpy(rows)):
            batch = {name: column[chosen] for name, column in data.train.items()}
            yield data.transform(batch, {name: draw[step] for name, draw in draws.items()})

    def loop(self, model: nn.Module, round: int, prepare: Callable[[nn.Module], nn.Module]) -> Tensor:
        """The bare training loop: plain PyTorch, an optimiser a client, nothing around it.

        Args:
            model: at the common start.
            round: which cohort.
            prepare: returns the model that a client trains, at the start.
        """
        total, start, interpolates = torch.zeros(()), _flat(model), self._work.interpolates
        for client in sample_cohort(generator(0, Purpose.COHORT, round), self._partition.clients, self._work.clients):
            trained = prepare(model)
            optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], _LR, _MOMENTUM)
            for batch in self.batches(round, client):
                optimizer.zero_grad()
                logits = trained(pixel_values=batch["pixel_values"], interpolate_pos_encoding=interpolates).logits
                functional.cross_entropy(logits, batch["labels"]).backward()
                optimizer.step()
            total = total + (start - _flat(trained))
        return total / self._work.clients

    def engine(self, slots: int, workers: Workers = _ALONE) -> Round:
        """The engine's whole round: sampling, encoding, decoding and the server's step included.

        Args:
            slots: clients in one forward; 1 trains one after another.
            workers: the processes that share the round; only the server worker's returns the update, others zeros.
        """
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
            population=self._partition,
            parameters=parameters,
            backbone=FrozenBackbone(model),
            trainer=trainer,
            evaluator=Evaluator(model, parameters, task, train, 256, nullcontext),
            client_evaluator=None,
            client=ClientOptions(batch_size=self._work.batch_size, max_steps=self._work.steps),
            server=ServerOptions(optimizer="sgd", lr=1.0),
            communication=CommunicationOptions(),
            evaluation=EvaluationOptions(),
            run=RunOptions(rounds=1, cohort_size=self._work.clients),
        )
        start = parameters.vector.clone()

        def train_round(round: int) -> Tensor:
            parameters.vector.copy_(start)
            state = initial_state(experiment)
            run_round(experiment, state, round, workers, None)
            return start - state.vector.detach()

        return train_round

    def two_workers(self) -> Round:
        """The engine's whole round on two processes, each of as many threads as this one."""
        return self._open.enter_context(two_workers(partial(_share, self._work), torch.get_num_threads()))


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


def _share(work: Work, workers: Workers) -> Round:
    """One worker's part of a round, built in its own process."""
    return Arena(work).engine(1, workers)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


WHO: dict[str, Callable[[Arena], Round]] = {
    "bare": _bare,
    "deep_copy": _deep_copy,
    "fedsim_sequential": lambda arena: arena.engine(1),
    "fedsim_two_workers": Arena.two_workers,
    "fedsim_packed": lambda arena: arena.engine(10),
}
