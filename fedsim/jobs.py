"""What a client will do, laid out as data: its batches, the draws of augmentation, the seed of dropout."""

import numpy as np
from torch import Tensor

from fedsim.experiment import Experiment
from fedsim.method import ClientJob, Plan
from fedsim.sampling import local_batches
from fedsim.seeding import Purpose, generator, torch_seed


def round_job(experiment: Experiment, round: int, position: int, client: int, plan: Plan, start: Tensor) -> ClientJob:
    """Lays out what one client does this round; the method may refine it.

    Args:
        experiment: the run.
        round: 1 to the number of rounds.
        position: of the client in the cohort.
        client: its number in the partition.
        plan: what the method asks of it.
        start: (P,), what it downloaded.

    Returns:
        The job, which depends on the run's seed, the round and the client, and on no worker.
    """
    seed, options = experiment.run.seed, experiment.client
    batches = local_batches(
        generator(seed, Purpose.BATCHES, round, client),
        experiment.partition.of(client),
        options.batch_size,
        options.local_epochs,
        options.max_steps,
    )
    draws = generator(seed, Purpose.AUGMENTATION, round, client)
    dropout = torch_seed(seed, Purpose.DROPOUT, round, client)
    return _lay_out(experiment, position, client, plan, start, batches, draws, dropout)


def personal_job(experiment: Experiment, round: int, position: int, client: int, start: Tensor) -> ClientJob:
    """Lays out how an evaluated client trains on from the server's parameters; what comes of it is not uploaded.

    Args:
        experiment: the run.
        round: after which it is evaluated.
        position: of the client among those that are evaluated.
        client: its number in the partition.
        start: (P,), the main view.

    Returns:
        The job, by streams of its own: a client's training is the same whether it is evaluated or not.
    """
    random = generator(experiment.run.seed, Purpose.PERSONAL, round, client)
    batches = local_batches(
        random,
        experiment.partition.of(client),
        experiment.client.batch_size,
        experiment.evaluation.local_epochs,
        experiment.client.max_steps,
    )
    plan, dropout = experiment.method.plan(round, client), int(random.integers(2**63))
    return _lay_out(experiment, position, client, plan, start, batches, random, dropout)


def _lay_out(
    experiment: Experiment,
    position: int,
    client: int,
    plan: Plan,
    start: Tensor,
    batches: np.ndarray,
    augmentation: np.random.Generator,
    dropout_seed: int,
) -> ClientJob:
    """Makes a job of its batches and streams, as the method wants it."""
    draws = experiment.data.draw(augmentation, batches.shape)
    job = ClientJob(
        client=client,
        position=position,
        plan=plan,
        layout=experiment.parameters.layout,
        start=start,
        reference=start,
        batches=batches,
        draws={name: draw.to(start.device) for name, draw in draws.items()},
        seed=dropout_seed,
    )
    return experiment.method.begin(job)
