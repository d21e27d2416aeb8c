"""A client: the LightningModule around a LoRA-adapted backbone, and the trainer that runs jobs one after another.

The engine drives the module without a lightning.Trainer: a Trainer, DataLoader or optimiser object per client would
cost more than a small client's steps. The same module also trains under a stock Trainer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import lightning
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedsim.classification import Classification
from fedsim.data import Batch, Examples
from fedsim.errors import ConfigurationError, named
from fedsim.method import ClientJob, Penalty
from fedsim.optimizers import SGD, LocalOptimizer, clip
from fedsim.parameters import FlatParameters
from fedsim.task import Task

Autocast = Callable[[], AbstractContextManager[None]]


class ClientModule(lightning.LightningModule):
    """What a client trains: an adapted backbone and its task.

    Args:
        backbone: the LoRA-adapted backbone.
        task: what it learns.
        optimizer: what a stock Trainer uses; the engine steps P with its own, flat.
    """

    def __init__(self, backbone: nn.Module, task: Task | None = None, optimizer: SGD | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.task = task or Classification()
        self._sgd = optimizer or SGD(lr=1e-3)

    def example_losses(self, batch: Batch) -> Tensor:
        """Returns the loss of each row, (B,)."""
        return self.task.example_losses(self.backbone, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the mean of the example losses, weighted by `batch["weight"]` (B,) where it is given."""
        loss = weighted_mean(self.example_losses(batch), batch.get("weight"))
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns SGD for a stock Trainer."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trainable, self._sgd.lr, self._sgd.momentum, weight_decay=self._sgd.weight_decay)


def weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Reduces (..., B) losses over their last dimension; rows of weight zero count nothing, and without any it is 0."""
    if weight is None:
        return losses.mean(-1)
    return (losses * weight).sum(-1) / weight.sum(-1).clamp(min=1)


@dataclass(frozen=True, eq=False)
class Trained:
    """A job that is done.

    Attributes:
        job: the job.
        vector: (P,), where it ended.
        logged: what its module logged, as means over its examples.
    """

    job: ClientJob
    vector: Tensor
    logged: dict[str, float]


class Trainer(Protocol):
    """Runs jobs, in any order, and yields each as it is done."""

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        """Trains every job from its own start; none sees another."""


@dataclass
class Recorder:
    """Stands in for LightningModule.log: values stay on the device until the job is done."""

    weight: int = 0
    sums: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """Adds one value, weighted by the examples of the step that it came from."""
        if not isinstance(value, int | float | Tensor):
            raise ConfigurationError(
                f"the client's module logs {name!r} as a {type(value).__name__}; expected a number or a tensor, "
                "as a metric object would mix clients: log its value"
            )
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ConfigurationError(
                f"the client's module logs {name!r} of shape {tuple(value.shape)}; expected one number, so log its mean"
            )
        total, weight = self.sums.get(name, (torch.zeros((), dtype=torch.float64), 0))
        value = torch.as_tensor(value).detach().double().reshape(())
        self.sums[name] = (total.to(value.device) + value * self.weight, weight + self.weight)

    def log_dict(self, dictionary: dict[str, Any], *_: Any, **__: Any) -> None:
        """Adds several."""
        for name, value in dictionary.items():
            self.log(name, value)

    def means(self) -> dict[str, float]:
        """Returns the means so far and starts anew."""
        means = {name: float(total) / weight for name, (total, weight) in self.sums.items() if weight}
        self.sums = {}
        return means


def set_client_mode(module: nn.Module, backbone_dropout: bool = False) -> None:
    """Sets what is random while a client trains: LoRA's dropout always, the backbone's own where asked for.

    FLASC's published code has the backbone's off, as its model comes from from_pretrained and is never told to train.

    Args:
        module: the client's module.
        backbone_dropout: whether the dropout that the backbone was built with is on. Running statistics of batch
            normalisation stay as they are in any case: they do not travel.
    """
    module.train(backbone_dropout)
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout.train()
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
        elif getattr(layer, "gradient_checkpointing", False):
            layer.training = True  # or transformers keeps its activations; what is inside it stays as it is


def _loss_of(output: Any) -> Tensor:
    """Takes the loss out of what a training_step returned, as a stock Trainer would."""
    loss = output.get("loss") if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise ConfigurationError(
            f"training_step of the client's module returned {type(output).__name__} without a loss; "
            "expected a tensor, or a dict with one under 'loss'"
        )
    if loss.numel() != 1:
        raise ConfigurationError(
            f"training_step of the client's module returned a loss of shape {tuple(loss.shape)}; expected one number, "
            "so return its mean"
        )
    return loss


class SequentialTrainer:
    """Runs jobs one after another on the one model of the worker.

    Args:
        module: the client's module; `training_step(batch, step)` is all that is asked of it. A module that overrides
            configure_optimizers is stepped by its own optimiser, a fresh one a job, which knows no rate scale.
        parameters: the flat P that its backbone's trainable parameters are views of.
        examples: the training set.
        optimizer: the client's optimiser.
        penalty: what the method adds to every loss, or None.
        autocast: makes the precision context of a step.
        backbone_dropout: whether the backbone's own dropout is on.
        clip_norm: the most that a step's gradient may be long, or None.
    """

    def __init__(
        self,
        module: lightning.LightningModule,
        parameters: FlatParameters,
        examples: Examples,
        optimizer: LocalOptimizer,
        penalty: Penalty | None,
        autocast: Autocast,
        backbone_dropout: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        self._module = module
        self._parameters = parameters
        self._examples = examples
        self._optimizer = optimizer
        self._penalty_gradient = None if penalty is None else torch.func.grad(penalty)
        self._autocast = autocast
        self._backbone_dropout = backbone_dropout
        self._clip_norm = clip_norm
        self._recorder = Recorder()
        module.log, module.log_dict = self._recorder.log, self._recorder.log_dict
        if not module.automatic_optimization:
            raise ConfigurationError(
                f"{type(module).__name__} sets automatic_optimization to False; the engine steps P itself, leave it out"
            )
        self._own_optimizer()

    def dry_run(self) -> None:
        """Takes the loss of two rows and forgets it: what a module gets wrong shows before anything is written."""
        set_client_mode(self._module, self._backbone_dropout)
        rows = torch.zeros(2, dtype=torch.long, device=self._examples.device)
        with self._own_randomness(), self._autocast():
            _loss_of(self._module.training_step(self._examples.batch(rows), 0))
        self._recorder.means()

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        """Trains the jobs in the order given."""
        set_client_mode(self._module, self._backbone_dropout)
        for job in jobs:
            with named(f"client {job.client}"), self._own_randomness():
                torch.manual_seed(job.seed)
                self._run(job)
            yield Trained(job, self._parameters.vector.clone(), self._recorder.means())

    def _run(self, job: ClientJob) -> None:
        vector, gradient = self._parameters.vector, self._parameters.gradient
        self._parameters.load(job.start)
        step_own = self._own_optimizer()
        state, scale = self._optimizer.state(vector), job.step_scale()
        batches, sizes = torch.from_numpy(job.batches).to(vector.device), (job.batches >= 0).sum(1).tolist()
        for step, size in enumerate(sizes):  # without the padding at the end of a row
            self._recorder.weight = size
            draws = {name: draw[step, :size] for name, draw in job.draws.items()}
            places = self._examples.places(job.batches[step, :size])
            batch = self._examples.batch(batches[step, :size], draws, places)
            gradient.zero_()
            with self._autocast():
                output = self._module.training_step(batch, step)
            _loss_of(output).backward()
            if self._penalty_gradient is not None:
                gradient.add_(self._penalty_gradient(vector, job.reference, job.penalty_tensors))
            if job.gradient_mask is not None:
                gradient.mul_(job.gradient_mask)
            clip(gradient, self._clip_norm)
            if step_own is None:
                self._optimizer.step(vector, gradient, state, scale)
                continue
            step_own()
            if job.gradient_mask is not None:
                vector.copy_(torch.where(job.gradient_mask == 0, job.start, vector))

    def _own_randomness(self) -> AbstractContextManager[None]:
        """Keeps torch's global generators as they are for everybody else."""
        device = self._examples.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def _own_optimizer(self) -> Callable[[], Any] | None:
        """Returns the step of the module's own optimiser where it brings one."""
        inherited = (ClientModule.configure_optimizers, lightning.LightningModule.configure_optimizers)
        if type(self._module).configure_optimizers in inherited:
            return None
        optimizer = self._module.configure_optimizers()
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigurationError(
                f"{type(self._module).__name__}.configure_optimizers returned {type(optimizer).__name__}; "
                "expected one torch optimiser, or leave the method out to use client.optimizer"
            )
        return optimizer.step
