"""What a client will do, laid out as data: its batches, the draws of augmentation, the seed of dropout."""

import numpy as np
import torch
from torch import Tensor

from fedsim.briefing import Briefing
from fedsim.errors import TrainingError
from fedsim.experiment import Experiment
from fedsim.method import ClientJob, Method, Plan, Shared
from fedsim.sampling import local_batches
from fedsim.seeding import Purpose, generator, torch_seed


def gradient_mask(method: Method, shared: Shared, plan: Plan, like: Tensor) -> Tensor | None:
    """Makes the mask of what moves under a plan, which its clients share: it may be as large as the backbone.

    Args:
        method: says what moves.
        shared: what everybody knows of the round.
        plan: of the clients.
        like: (P,), for dtype and device.

    Returns:
        (P,) of zeros and ones; None where everything moves.
    """
    moving = method.moving(shared, plan)
    return None if moving is None else torch.zeros_like(like).index_fill(0, moving.to(like.device), 1)


def round_job(
    experiment: Experiment, briefing: Briefing, position: int, client: int, start: Tensor, mask: Tensor | None
) -> ClientJob:
    """Lays out what one client does this round; the method may refine it.

    Args:
        experiment: the run.
        briefing: of the round.
        position: of the client in the cohort.
        client: its number in the population.
        start: (P,), what it made of its download.
        mask: (P,), what moves under its plan, or None; see `gradient_mask`.

    Returns:
        The job, which depends on the run's seed, the round and the client, and on no worker.
    """
    seed, options, round = experiment.run.seed, experiment.client, briefing.shared.round
    batches = local_batches(
        generator(seed, Purpose.BATCHES, round, client),
        experiment.population.of(client),
        options.batch_size,
        options.local_epochs,
        options.max_steps,
        experiment.lengths,
    )
    draws = generator(seed, Purpose.AUGMENTATION, round, client)
    dropout = torch_seed(seed, Purpose.DROPOUT, round, client)
    return _lay_out(experiment, briefing, position, client, start, mask, batches, draws, dropout)


def personal_job(
    experiment: Experiment, briefing: Briefing, position: int, client: int, vector: Tensor, mask: Tensor | None
) -> ClientJob:
    """Lays out how an evaluated client trains on from the server's parameters; what comes of it is not uploaded.

    Args:
        experiment: the run.
        briefing: of the evaluated clients.
        position: of the client among them.
        client: its number in the partition.
        vector: (P,), the main view, in which it restores the parts that are its own, or of which it holds its slice.
        mask: (P,), what moves under its plan, or None; see `gradient_mask`.

    Returns:
        The job, by streams of its own: a client's training is the same whether it is evaluated or not.
    """
    shared = briefing.shared
    random = generator(experiment.run.seed, Purpose.PERSONAL, shared.round, client)
    batches = local_batches(
        random,
        experiment.partition.of(client),
        experiment.client.batch_size,
        experiment.evaluation.local_epochs,
        experiment.client.max_steps,
        experiment.lengths,
    )
    dropout = int(random.integers(2**63))
    start = experiment.method.personal(shared, vector, briefing.clients[position])
    if briefing.plan(position).lora_rank and mask is not None:
        start = start * mask
    return _lay_out(experiment, briefing, position, client, start, mask, batches, random, dropout)


def require_finite(vector: Tensor, what: str) -> None:
    """Stops a run that diverged."""
    broken = int((~vector.isfinite()).sum())
    if broken:
        raise TrainingError(f"{what}: {broken} of {len(vector)} values are not finite; lower client.lr or server.lr")


def _lay_out(
    experiment: Experiment,
    briefing: Briefing,
    position: int,
    client: int,
    start: Tensor,
    mask: Tensor | None,
    batches: np.ndarray,
    augmentation: np.random.Generator,
    dropout_seed: int,
) -> ClientJob:
    """Makes a job of its batches and streams, as the method wants it."""
    draws = experiment.data.draw(augmentation, batches.shape)
    job = ClientJob(
        client=client,
        position=position,
        plan=briefing.plan(position),
        shared=briefing.shared,
        start=start,
        reference=start,
        batches=batches,
        draws={name: draw.to(start.device) for name, draw in draws.items()},
        seed=dropout_seed,
        state=briefing.clients[position].tensors,
        gradient_mask=mask,
    )
    return experiment.method.begin(job)
