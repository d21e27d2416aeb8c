"""The same round of local work, done by a bare training loop and by the engine, on the same model and batches.

Every contestant trains the same clients on the same rows from the same start and returns the mean update, so that
equal work is checked before anything is timed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_partitions.dataset import FederatedData
from data_partitions.partitioners.iid import IID
from fedsim.classification import Classification
from fedsim.client import ClientModule, Trainer
from fedsim.data import Batch, Examples
from fedsim.evaluation import Evaluator
from fedsim.experiment import Experiment
from fedsim.frozen import FrozenBackbone
from fedsim.method import Method
from fedsim.optimizers import SGD
from fedsim.options import ClientOptions, CommunicationOptions, EvaluationOptions, RunOptions, ServerOptions
from fedsim.parameters import FlatParameters
from fedsim.sampling import local_batches, sample_cohort
from fedsim.seeding import Purpose, generator
from fedsim.server import initial_state
from fedsim.simulation import run_round
from fedsim.transport import Workers
from launch.benchmarks.peers.process import peer
from launch.benchmarks.two_workers import two_workers
from launch.benchmarks.works import Round, Work
from launch.build import EVALUATION_BATCH
from launch.trainers import Parts
from methods.lora import LoRA

LR, MOMENTUM = 2e-2, 0.9
"""Of every client's SGD."""
_CPU = torch.device("cpu")
ALONE = Workers(0, 1, _CPU)
"""The one worker of a round that nobody shares."""


class Arena:
    """Builds contestants for one work: each gets a model of its own, from the same weights.

    A context manager, because some contestants are processes: they end with it.

    Args:
        work: the size of the work.

    Attributes:
        work: the same.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._open = ExitStack()
        self._data = _enough(work.data(), work.clients * work.batch_size * work.steps)
        labels = self._data.train["labels"].numpy()
        # Enough examples a client that every one of its steps is full.
        clients = min(max(work.population, work.clients), len(labels) // (work.batch_size * work.steps))
        self._partition = IID(clients).split(labels, None, np.random.default_rng(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def model(self) -> nn.Module:
        """Makes the adapted backbone."""
        return self.work.model(self._data)

    def cohort(self, round: int) -> list[int]:
        """Draws the clients of a round, as the engine does."""
        return sample_cohort(generator(0, Purpose.COHORT, round), self._partition.clients, self.work.clients)

    def batches(self, round: int, client: int) -> Iterator[Batch]:
        """Yields the batches of a client's steps, augmented by the same draws as in the engine."""
        data, work = self._data, self.work
        random = generator(0, Purpose.BATCHES, round, client)
        rows = local_batches(random, self._partition.of(client), work.batch_size, 1, work.steps)
        draws = data.draw(generator(0, Purpose.AUGMENTATION, round, client), rows.shape)
        for step, chosen in enumerate(torch.from_numpy(rows)):
            batch = {name: column[chosen] for name, column in data.train.items()}
            yield data.transform(batch, {name: draw[step] for name, draw in draws.items()})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the mean loss of a batch in plain PyTorch, as everybody but the engine does."""
        inputs = {name: column for name, column in batch.items() if name != "labels"}
        return functional.cross_entropy(model(**inputs, **self.work.arguments).logits, batch["labels"])

    def loop(self, model: nn.Module, round: int, prepare: Callable[[nn.Module], nn.Module]) -> Tensor:
        """The bare training loop: plain PyTorch, an optimiser a client, nothing around it.

        Args:
            model: at the common start.
            round: which cohort.
            prepare: returns the model that a client trains, at the start.
        """
        total, start = torch.zeros(()), flat(model)
        for client in self.cohort(round):
            trained = prepare(model)
            optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], LR, MOMENTUM)
            for batch in self.batches(round, client):
                optimizer.zero_grad()
                self.loss(trained, batch).backward()
                optimizer.step()
            total = total + (start - flat(trained))
        return total / self.work.clients

    def parts(self, bf16: bool = False) -> Parts:
        """Builds what the engine's trainers are made of, around a model of its own."""
        model = self.model()
        return Parts(
            options=ClientOptions(batch_size=self.work.batch_size, max_steps=self.work.steps),
            module=ClientModule(model, Classification()),
            parameters=FlatParameters(model),
            data=self._data,
            train=Examples(self._data, self._data.train, _CPU, torch.float32),
            optimizer=SGD(LR, MOMENTUM),
            penalty=None,
            autocast=partial(torch.autocast, _CPU.type, torch.bfloat16) if bf16 else nullcontext,
        )

    def engine(
        self,
        slots: int,
        workers: Workers = ALONE,
        bf16: bool = False,
        compile: bool = False,
        like_length: bool = False,
        watch: Callable[[Trainer], Trainer] = lambda trainer: trainer,
        prepare: Callable[[Parts], Parts] = lambda parts: parts,
    ) -> Round:
        """The engine's whole round: sampling, encoding, decoding and the server's step included.

        Args:
            slots: clients in one forward; 1 trains one after another.
            workers: the processes that share the round; only the server worker's returns the update, others zeros.
            bf16: whether matrix products are in bfloat16.
            compile: whether packed steps are compiled.
            like_length: whether a client's batches are of texts of like length.
            watch: puts something around the trainer.
            prepare: changes what the trainer is made of.
        """
        parts = prepare(self.parts(bf16))
        trainer = watch(parts.sequential() if slots == 1 else parts.packed(slots, compile))
        experiment = self.experiment(LoRA(), parts, trainer, parts.train.lengths if like_length else None)
        vector, start = parts.parameters.vector, parts.parameters.vector.clone()

        def train_round(round: int) -> Tensor:
            vector.copy_(start)
            state = initial_state(experiment)
            run_round(experiment, state, round, workers, None)
            return start - state.vector.detach()

        return train_round

    def experiment(
        self, method: Method, parts: Parts, trainer: Trainer, lengths: np.ndarray | None = None
    ) -> Experiment:
        """Puts together what the engine needs for rounds of this work.

        Args:
            method: whose server steps by the mean update.
            parts: what the trainer is made of.
            trainer: of the clients.
            lengths: of the training texts, (examples,), where batches are to be of like length.
        """
        return Experiment(
            method=method,
            data=self._data,
            partition=self._partition,
            population=self._partition,
            parameters=parts.parameters,
            backbone=FrozenBackbone(parts.module.backbone),
            trainer=trainer,
            evaluator=self.evaluator(parts),
            client_evaluator=None,
            client=parts.options,
            server=ServerOptions(optimizer="sgd", lr=1.0),
            communication=CommunicationOptions(),
            evaluation=EvaluationOptions(),
            run=RunOptions(rounds=1, cohort_size=self.work.clients),
            lengths=lengths,
        )

    def evaluator(self, parts: Parts) -> Evaluator:
        """Evaluates on the training set."""
        backbone = parts.module.backbone
        return Evaluator(backbone, parts.parameters, Classification(), parts.train, EVALUATION_BATCH, nullcontext)

    def peer(self, who: str, bf16: bool = False, threads: int = 1) -> Round:
        """Another simulator's whole round, in a process of its own, of so many times the threads of this one."""
        work = replace(self.work, bf16=bf16)
        return self._open.enter_context(peer(who, work, threads * torch.get_num_threads()))

    def two_workers(self, slots: int, compile: bool = False) -> Round:
        """The engine's whole round on two processes, each of as many threads as this one."""
        build = partial(_share, self.work, slots, compile)
        return self._open.enter_context(two_workers(build, torch.get_num_threads()))


def _enough(data: FederatedData, examples: int) -> FederatedData:
    """Lets the training examples come again where a round needs more: speed asks for no new ones."""
    times = -(-examples // len(data.train["labels"]))
    columns = {name: column.repeat(times, *[1] * (column.ndim - 1)) for name, column in data.train.items()}
    return data if times == 1 else replace(data, train=columns)


def _share(work: Work, slots: int, compile: bool, workers: Workers) -> Round:
    """One worker's part of a round, built in its own process."""
    return Arena(work).engine(slots, workers, compile=compile)


def flat(model: nn.Module) -> Tensor:
    """Copies what trains into one vector, (P,)."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
