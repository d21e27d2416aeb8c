"""Many clients in one forward over the shared backbone: the second trainer of the same jobs.

G slots hold a client each. Every linear layer that trains (LoRA's two factors, the head) becomes a batched product
with one weight per slot; everything frozen runs once over all rows. A slot whose client is done takes the next one at
once. There are always G slots, empty ones with weight zero, so that a client's bits do not depend on its neighbours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fedsim.client import Autocast, ClientModule, SequentialTrainer, Trained, set_client_mode, weighted_mean
from fedsim.data import Batch, Examples
from fedsim.errors import named
from fedsim.method import ClientJob, Penalty
from fedsim.optimizers import LocalOptimizer, clip
from fedsim.parameters import FlatParameters, Layout


def why_not_packed(module: nn.Module, layout: Layout) -> str | None:
    """Says why a module cannot be packed, or None if it can.

    Args:
        module: the client's module.
        layout: of its trainable parameters.
    """
    if not isinstance(module, ClientModule):
        return f"{type(module).__name__} is no ClientModule: it gives no example_losses"
    for method in ("training_step", "configure_optimizers"):
        if getattr(type(module), method) is not getattr(ClientModule, method):
            return f"{type(module).__name__} overrides {method}"
    whole = {
        f"{name}.{parameter}"
        for name, linear in _trainable_linears(module.backbone)
        if all(p.requires_grad for p in linear.parameters())
        for parameter, _ in linear.named_parameters()
    }
    others = [entry.name for entry in layout.entries if entry.name not in whole]
    return f"{others[0]} trains and belongs to no nn.Linear that trains whole" if others else None


class StagedTrainer:
    """Packs where it can: in a stage of a method whose P is the backbone, jobs run one after another.

    Args:
        module: the client's.
        parameters: the flat P of its backbone, made of other segments from stage to stage.
        packed: runs jobs where `why_not_packed` is None.
        sequential: runs them elsewhere.
    """

    def __init__(
        self, module: ClientModule, parameters: FlatParameters, packed: "PackedTrainer", sequential: SequentialTrainer
    ) -> None:
        self._module = module
        self._parameters = parameters
        self._packed = packed
        self._sequential = sequential

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        """Trains the jobs as the stage allows."""
        able = why_not_packed(self._module, self._parameters.layout) is None
        return (self._packed if able else self._sequential).train(jobs)


class PackedTrainer:
    """Runs up to G jobs at once.

    Args:
        module: the client's module, for which `why_not_packed` is None.
        parameters: the flat P of its backbone.
        examples: the training set.
        optimizer: the client's optimiser, stepped on (G, P).
        penalty: what the method adds to every loss, or None.
        autocast: makes the precision context of a step.
        slots: G, at least 1.
        clip_norm: the most that a step's gradient of a slot may be long, or None.
        compile: whether the forward and the backward are compiled, by torch.compile: once, as every step has the same
            shapes.
    """

    def __init__(
        self,
        module: ClientModule,
        parameters: FlatParameters,
        examples: Examples,
        optimizer: LocalOptimizer,
        penalty: Penalty | None,
        autocast: Autocast,
        slots: int,
        clip_norm: float | None = None,
        compile: bool = False,
    ) -> None:
        self._module = module
        self._losses = torch.compile(module.example_losses, dynamic=False) if compile else module.example_losses
        self._examples = examples
        self._optimizer = optimizer
        self._penalty_gradient = None if penalty is None else torch.func.vmap(torch.func.grad(penalty))
        self._autocast = autocast
        self._parameters = parameters
        self._count = slots
        self._clip_norm = clip_norm
        self._layout: Layout | None = None

    def _make_slots(self) -> None:
        """Makes room for P, again where it is made of other segments."""
        layout = self._parameters.layout
        if layout is self._layout:
            return
        self._layout = layout
        self._vector = self._parameters.vector.repeat(self._count, 1)
        self._weights = {name: view.requires_grad_() for name, view in layout.views(self._vector).items()}
        self._linears = {
            name: _PackedLinear(self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))
            for name, _ in _trainable_linears(self._module.backbone)
        }

    def dry_run(self, job: ClientJob) -> None:
        """Takes the gradient of a job's first step and forgets it: what cannot be compiled shows before a run."""
        slots: list[_Slot | None] = [None] * self._count
        slots[0] = _Slot(job, self._examples.device)
        self._gradient(slots, self._begin())

    def _begin(self) -> list[nn.Dropout]:
        """Makes room, and returns what is random while clients train."""
        self._make_slots()
        set_client_mode(self._module)
        return [m for m in self._module.backbone.modules() if isinstance(m, nn.Dropout) and m.training and m.p]

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        """Trains the jobs, longest first, and yields each when its slot is done with it."""
        dropouts = self._begin()
        waiting = sorted(jobs, key=lambda job: len(job.batches))
        state = self._optimizer.state(self._vector)
        slots: list[_Slot | None] = [None] * self._count
        while waiting or any(slots):
            for number, slot in enumerate(slots):
                if slot is None and waiting:
                    job = waiting.pop()
                    slots[number] = _Slot(job, self._examples.device)
                    self._vector[number] = job.start
                    for value in state.values():
                        value[number] = 0
            with named(f"clients {', '.join(str(slot.job.client) for slot in slots if slot)}"):
                self._step(slots, dropouts, state)
            for number, slot in enumerate(slots):
                if slot is not None and slot.done:
                    slots[number] = None
                    yield Trained(slot.job, self._vector[number].clone(), slot.logged())

    def _gradient(self, slots: list["_Slot | None"], dropouts: Sequence[nn.Dropout]) -> tuple[Tensor, Tensor]:
        """The mean loss of every slot's next step, (G,), and its gradient, (G, P)."""
        batch = self._batch(slots)
        with _packed(self._module.backbone, self._linears, dropouts, slots):
            with self._autocast():
                losses = self._losses(batch)
            losses, weight = (value.view(self._count, -1) for value in (losses, batch["weight"]))
            means = weighted_mean(losses, weight)
            gradients = torch.autograd.grad(means.sum(), list(self._weights.values()), materialize_grads=True)
        return means.detach(), torch.cat([part.flatten(1) for part in gradients], dim=1)

    def _step(self, slots: list["_Slot | None"], dropouts: Sequence[nn.Dropout], state: dict[str, Tensor]) -> None:
        means, gradient = self._gradient(slots, dropouts)
        if self._penalty_gradient is not None:
            self._add_penalty(slots, gradient, self._penalty_gradient)
        mask = self._stack(slots, lambda job: job.gradient_mask)
        if mask is not None:
            gradient.mul_(mask)
        clip(gradient, self._clip_norm)
        self._optimizer.step(self._vector, gradient, state, self._stack(slots, ClientJob.step_scale))
        for slot, mean in zip(slots, means, strict=True):
            if slot is not None:
                slot.advance(mean)

    def _batch(self, slots: Sequence["_Slot | None"]) -> Batch:
        """Gathers the next rows of every slot, (G B, ...), slot by slot."""
        busy = _first(slots)
        empty = torch.full_like(busy.batches[0], -1)
        rows = torch.cat([empty if slot is None else slot.batches[slot.step] for slot in slots])
        draws = {
            name: torch.cat([torch.zeros_like(draw[0]) if s is None else s.job.draws[name][s.step] for s in slots])
            for name, draw in busy.job.draws.items()
        }
        return self._examples.batch(rows, draws)

    def _stack(self, slots: Sequence["_Slot | None"], of: Callable[[ClientJob], Tensor | None]) -> Tensor | None:
        """Stacks what jobs multiply by, (G, P), ones where a slot has none; None where no slot has any."""
        parts = [None if slot is None else of(slot.job) for slot in slots]
        if all(part is None for part in parts):
            return None
        return torch.stack([torch.ones_like(self._vector[0]) if part is None else part for part in parts])

    def _add_penalty(
        self,
        slots: Sequence["_Slot | None"],
        total: Tensor,
        gradient: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor],
    ) -> None:
        """Adds the penalty's gradient, always over G rows: an empty slot stands in with another's tensors."""
        jobs = [(_first(slots) if slot is None else slot).job for slot in slots]
        tensors = {name: torch.stack([job.penalty_tensors[name] for job in jobs]) for name in jobs[0].penalty_tensors}
        total += gradient(self._vector, torch.stack([job.reference for job in jobs]), tensors)


class _Slot:
    """A client in its place: how far it is, and its own dropout."""

    def __init__(self, job: ClientJob, device: torch.device) -> None:
        self.job = job
        self.batches = torch.from_numpy(job.batches).to(device)
        self.step = 0
        self.generator = torch.Generator(device).manual_seed(job.seed)
        self._losses: list[Tensor] = []

    @property
    def done(self) -> bool:
        return self.step == len(self.batches)

    def advance(self, mean_loss: Tensor) -> None:
        self._losses.append(mean_loss)
        self.step += 1

    def logged(self) -> dict[str, float]:
        weight = torch.from_numpy((self.job.batches >= 0).sum(1)).double()
        return {"train/loss": float(torch.stack(self._losses).double().cpu() @ weight / weight.sum())}


def _trainable_linears(backbone: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear) and any(p.requires_grad for p in module.parameters(recurse=False)):
            yield name, module


def _first(slots: Sequence[_Slot | None]) -> _Slot:
    return next(slot for slot in slots if slot is not None)


class _PackedLinear(nn.Module):
    """Stands in for a linear layer that trains: (G b, ..., in) to (G b, ..., out), a slot's rows by its own weight.

    Args:
        weight: (G, out, in), which the trainer steps.
        bias: (G, out), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiplies slot by slot."""
        rows = inputs.reshape(len(self.weight), -1, inputs.shape[-1])
        if self.bias is None:
            outputs = torch.bmm(rows, self.weight.transpose(1, 2))
        else:
            outputs = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.transpose(1, 2))
        return outputs.view(*inputs.shape[:-1], -1)


@contextmanager
def _packed(
    backbone: nn.Module,
    linears: Mapping[str, nn.Module],
    dropouts: Sequence[nn.Dropout],
    slots: Sequence[_Slot | None],
) -> Iterator[None]:
    """For one step: a weight per slot in every layer that trains, and dropout from each slot's generator."""
    alone = {name: backbone.get_submodule(name) for name in linears}
    _put(backbone, linears)
    for dropout in dropouts:
        dropout.forward = partial(_dropout, dropout.p, slots)  # type: ignore[method-assign]
    try:
        yield
    finally:
        _put(backbone, alone)
        for dropout in dropouts:
            del dropout.forward


def _put(backbone: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Puts layers in their places, by their names."""
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        backbone.get_submodule(parent)._modules[own] = layer


@torch.compiler.disable
def _dropout(rate: float, slots: Sequence[_Slot | None], inputs: Tensor) -> Tensor:
    keep = torch.ones(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    for rows, slot in zip(keep.view(len(slots), -1), slots, strict=True):
        if slot is not None:
            rows.bernoulli_(1 - rate, generator=slot.generator)
    return inputs * keep / (1 - rate)
