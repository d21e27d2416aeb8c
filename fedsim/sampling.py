"""Who takes part and what it trains on: pure functions of a generator. Cost follows the cohort, not the population."""

import numpy as np

from fedsim.options import CohortSampling


def sample_cohort(
    generator: np.random.Generator,
    population: int,
    cohort_size: int,
    sampling: CohortSampling = "without_replacement",
) -> list[int]:
    """Draws the clients of one round, uniformly without replacement (FLASC, Algorithm 1, lines 6 and 7) or by coins.

    Args:
        generator: of the purpose COHORT and this round.
        population: how many clients there are.
        cohort_size: how many of them take part, at most the population; of poisson how many are to be expected.
        sampling: poisson lets each client take part with probability cohort_size / population, independently: their
            number is binomial, and given it every subset is as likely.

    Returns:
        The clients in increasing order: the cohort order, in which updates are added.
    """
    if sampling == "poisson":
        cohort_size = int(generator.binomial(population, cohort_size / population))
    return sorted(generator.choice(population, cohort_size, replace=False, shuffle=False).tolist())


def local_steps(examples: int, batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Counts the local steps of a client with so many examples: what it costs a worker."""
    steps = -(-examples // batch_size) * epochs
    return steps if max_steps is None else min(steps, max_steps)


def local_batches(
    generator: np.random.Generator,
    examples: np.ndarray,
    batch_size: int,
    epochs: int,
    max_steps: int | None,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Lays out a client's local steps: every epoch a new order, the last batch of an epoch padded.

    Args:
        generator: of the purpose BATCHES, this round and this client.
        examples: (n,) int64, the client's rows of the training set.
        batch_size: rows a step, at least 1.
        epochs: passes over the client's examples, at least 1.
        max_steps: stop after so many steps, None for no bound.
        lengths: (N,), of every row of the training set: batches are of rows of like length, in an order of their own,
            in which the padded one may be any. None draws without regard to length.

    Returns:
        (steps, batch_size) int64, -1 for padding, which stands at the end of a row; (0, batch_size) for no examples.
    """
    steps_per_epoch = -(-len(examples) // batch_size)
    steps = local_steps(len(examples), batch_size, epochs, max_steps)
    batches = np.full((steps, batch_size), -1, dtype=np.int64)
    for first in range(0, steps, max(1, steps_per_epoch)):
        order = generator.permutation(examples)
        if lengths is not None:
            order = order[np.argsort(lengths[order], kind="stable")]
        epoch = np.full((steps_per_epoch, batch_size), -1, dtype=np.int64)
        epoch.reshape(-1)[: order.size] = order
        if lengths is not None:
            epoch = generator.permutation(epoch)
        batches[first : first + steps_per_epoch] = epoch[: steps - first]
    return batches
