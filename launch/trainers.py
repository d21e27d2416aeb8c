"""The trainer of a run: one client after another, or packed, in as many slots as asked for or as serve best here."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import lightning
import numpy as np
import psutil
import torch
from torch import nn

from fedsim.client import ClientModule, SequentialTrainer, Trainer, set_client_mode
from fedsim.data import Examples, FederatedData
from fedsim.errors import ConfigurationError
from fedsim.method import ClientJob, Penalty, Plan, Shared
from fedsim.optimizers import LocalOptimizer
from fedsim.options import ClientOptions
from fedsim.pack_choice import Rows, StepSeconds, choose_slots, least_seconds, slot_counts
from fedsim.packed import PackedTrainer, StagedTrainer, why_not_packed
from fedsim.parameters import FlatParameters
from fedsim.reporting import peak_memory_bytes
from fedsim.transport import Workers

STEPS, TRIES = 2, 2
"""How a number of slots is measured: the least of so many tries of so many steps."""

MEMORY_SHARE = 0.5
"""How much of the memory that is free more slots may take."""


@dataclass(frozen=True)
class Parts:
    """What both trainers are made of.

    Attributes:
        options: how a client trains.
        module: the client's.
        parameters: the flat P of its backbone.
        data: draws augmentation.
        train: the training set.
        optimizer: the client's.
        penalty: what the method adds to every loss, or None.
        autocast: makes the precision context of a step.
    """

    options: ClientOptions
    module: lightning.LightningModule
    parameters: FlatParameters
    data: FederatedData
    train: Examples
    optimizer: LocalOptimizer
    penalty: Penalty | None
    autocast: Callable[[], AbstractContextManager[None]]

    def sequential(self) -> SequentialTrainer:
        """Makes the trainer that runs jobs one after another, and tries it on two rows."""
        trainer = SequentialTrainer(
            *(self.module, self.parameters, self.train, self.optimizer, self.penalty, self.autocast),
            backbone_dropout=self.options.backbone_dropout,
            clip_norm=self.options.clip_norm,
        )
        trainer.dry_run()
        return trainer

    def packed(self, slots: int, compile: bool = False) -> PackedTrainer:
        """Makes the trainer that runs so many jobs in one forward; `why_not_packed` must be None."""
        assert isinstance(self.module, ClientModule)
        return PackedTrainer(
            *(self.module, self.parameters, self.train, self.optimizer, self.penalty, self.autocast, slots),
            clip_norm=self.options.clip_norm,
            compile=compile,
        )

    def compiled(self, slots: int) -> PackedTrainer:
        """Makes such a trainer whose steps are compiled, and compiles them.

        Raises:
            ConfigurationError: they cannot be compiled here.
        """
        (job,) = _jobs(self, self.options.batch_size, 1)
        self.packed(slots).dry_run(job)  # what goes wrong here, no compiler is to blame for
        trainer = self.packed(slots, compile=True)
        try:
            trainer.dry_run(job)
        except Exception as error:  # of the compiler, of what it calls, and of what is missing on this machine
            reason = " ".join(str(error).split())[:300]
            raise ConfigurationError(
                f"client.compile: a packed step cannot be compiled ({type(error).__name__}: {reason}); expected a "
                "working C++ compiler, such as g++, and a backbone that torch.compile can read; or leave it out"
            ) from error
        return trainer

    def why_not_packed(self) -> str | None:
        """Says why clients train one after another, or None."""
        reason = why_not_packed(self.module, self.parameters.layout)
        if reason is None and self.options.backbone_dropout:
            reason = "client.backbone_dropout cannot be drawn per client in one forward"
        if reason is None and self.options.checkpoint_activations and _drops(self.module):
            reason = "client.checkpoint_activations would draw each client's dropout again in the backward pass"
        return reason


def _drops(module: lightning.LightningModule) -> bool:
    """Whether a client's forward is random."""
    set_client_mode(module)
    return any(isinstance(layer, nn.Dropout) and layer.training and layer.p for layer in module.modules())


def make_trainer(
    parts: Parts, stages: Sequence[Collection[str] | None], workloads: Callable[[], Sequence[Rows]], workers: Workers
) -> tuple[Trainer, int, str]:
    """Makes the trainer that the options ask for.

    Args:
        parts: what it is made of.
        stages: the segments of P in the first and in the last round, for `FlatParameters.activate`.
        workloads: counts the steps of the busiest worker, round by round; asked for where the slots are to be chosen.
        workers: the processes of the run; the server worker measures for all, so that all have as many slots.

    Returns:
        The trainer; how many clients it trains in one forward; what the user should know, or nothing.
    """
    asked = parts.options.pack
    if asked == 1:
        return parts.sequential(), 1, ""
    reasons = []
    for segments in stages:  # the last one stays, as that is where most rounds are
        parts.parameters.activate(segments)
        reasons.append(parts.why_not_packed())
    at_first, at_last = reasons
    if at_last is not None:
        return parts.sequential(), 1, f"client.pack {asked} falls back to one client after another: {at_last}"
    slots, note = (asked, "") if asked != "auto" else _choose_slots(parts, workloads, workers)
    if slots == 1:
        return parts.sequential(), slots, note
    packed = parts.compiled(slots) if parts.options.compile else parts.packed(slots)
    if at_first is None:
        return packed, slots, note
    assert isinstance(parts.module, ClientModule)
    trainer = StagedTrainer(parts.module, parts.parameters, packed, parts.sequential())
    later = f"client.pack {slots} is for a later stage: in the first one {at_first}"
    return trainer, slots, f"{note}; {later}" if note else later


def _choose_slots(parts: Parts, workloads: Callable[[], Sequence[Rows]], workers: Workers) -> tuple[int, str]:
    """Measures on the server worker, and tells all what serves best; with a line for the user there."""
    slots, note = 1, ""
    if workers.is_server:
        found = workloads()
        most = max(map(len, found))
        seconds = measure(parts, most)
        slots = choose_slots(seconds, found, most)
        note = f"client.pack auto: {slots} ({_rates(seconds, parts.options.batch_size)})"
    return workers.tell({"slots": slots}, {})[0]["slots"], note


def measure(parts: Parts, most: int) -> StepSeconds:
    """Times local steps on this machine: one client's, with full and with half batches, and packed ones.

    Nothing of the run changes: P is as it was, and no random stream is touched.

    Args:
        parts: of the trainers.
        most: slots that there is use for, at least 1.
    """
    parts = replace(parts, penalty=None)  # which needs what a method makes of a job, and costs next to nothing
    size, alone = parts.options.batch_size, parts.sequential()
    single = least_seconds(lambda rows: _seconds(parts, alone, rows, 1), sorted({size, max(1, size // 2)}), 1 + TRIES)
    packed: dict[int, float] = {}
    held = peak_memory_bytes()
    for slots in slot_counts(most):
        try:
            trainer = parts.packed(slots)
            packed |= least_seconds(lambda count, t=trainer: _seconds(parts, t, size, count), [slots], TRIES)  # type: ignore[misc]
        except torch.cuda.OutOfMemoryError:
            break
        grown = (peak_memory_bytes() - held) * 2  # twice the slots take twice of it
        if grown > MEMORY_SHARE * _free_bytes(parts.train.device):
            break
    return StepSeconds(single, packed)


def _seconds(parts: Parts, trainer: Trainer, rows: int, jobs: int) -> float:
    """Seconds of a local step of some jobs at once, each with so many examples a step; P is as it was before."""
    device, start = parts.train.device, parts.parameters.vector.clone()
    given = _jobs(parts, rows, jobs)
    _wait(device)
    started = time.perf_counter()
    for _ in trainer.train(given):
        pass
    _wait(device)
    seconds = (time.perf_counter() - started) / STEPS
    parts.parameters.load(start)
    return seconds


def _jobs(parts: Parts, rows: int, count: int) -> list[ClientJob]:
    """Makes jobs of a few steps, each of so many examples as clients would see together."""
    size, random = parts.options.batch_size, np.random.default_rng(0)
    some = random.integers(len(parts.train), size=8 * STEPS * rows)
    if parts.options.group_by_length and parts.train.lengths is not None:
        some = some[np.argsort(parts.train.lengths[some], kind="stable")]
    batches = np.full((STEPS, size), -1, dtype=np.int64)
    batches[:, :rows] = some.reshape(STEPS, 8, rows)[:, 4]
    draws = parts.data.draw(random, batches.shape)
    start = parts.parameters.vector.clone()
    shared = Shared(0, 0, parts.parameters.layout, start)
    return [
        ClientJob(
            client=number,
            position=number,
            plan=Plan(),
            shared=shared,
            start=start,
            reference=start,
            batches=batches,
            draws={name: draw.to(start.device) for name, draw in draws.items()},
            seed=number,
        )
        for number in range(count)
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _rates(seconds: StepSeconds, batch_size: int) -> str:
    """What was measured, as client steps a second."""
    found = {1: 1 / seconds.of_rows(batch_size), **{slots: slots / s for slots, s in seconds.packed.items()}}
    return "client steps a second by slots: " + ", ".join(f"{slots}: {rate:.3g}" for slots, rate in found.items())
