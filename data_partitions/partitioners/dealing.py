"""What several partitioners share: their arguments checked, Dirichlet shares, shares as whole numbers, random ranks."""

from __future__ import annotations

import math

import numpy as np

from data_partitions.errors import DataError


def require_alpha(alpha: float) -> float:
    """Checks a Dirichlet concentration: returned as a float above 0, a DataError for anything else."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not (math.isfinite(alpha) and alpha > 0):
        raise DataError(f"partition.alpha is {alpha!r}, expected a finite number above 0: give e.g. 0.5")
    return float(alpha)


def require_enough(examples: int, clients: int, min_examples: int) -> None:
    """Raises a DataError where there are too few examples for every client's minimum."""
    if clients * min_examples > examples:
        raise DataError(
            f"partition.min_examples is {min_examples} for {clients} clients, expected at most {examples // clients}"
            f" as there are {examples} examples: lower it or partition.clients"
        )


def log_gammas(alpha: float, shape: int | tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Draws the logarithms of gamma(alpha) variates, float64: at alpha 0.01 most variates are below any float."""
    # A gamma(alpha) variate is gamma(alpha + 1) * U^(1/alpha), and -log U is a standard exponential.
    drawn = generator.standard_gamma(alpha + 1, shape)
    np.log(drawn, out=drawn)
    drawn -= generator.standard_exponential(shape) / max(alpha, 1e-300)
    return drawn


def dirichlet_shares(alpha: float, clients: int, generator: np.random.Generator) -> np.ndarray:
    """Draws every client's share from a symmetric Dirichlet, float64 (clients,), summing to 1."""
    drawn = log_gammas(alpha, clients, generator)
    shares = np.exp(drawn - drawn.max())
    return shares / shares.sum()


def whole_parts(shares: np.ndarray, total: int) -> np.ndarray:
    """Cuts a total by shares (C,) that sum to 1: int64 (C,), within one of shares * total, summing to the total."""
    # Rounding the running total, not each share, deals every example exactly once.
    ends = np.rint(np.cumsum(shares) * total).astype(np.int64)
    ends[-1] = total
    return np.diff(np.minimum(ends, total), prepend=0)


def rows_by_label(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each label that occurs, labels and rows rising."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def random_ranks(owners: np.ndarray, clients: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers each client's examples from 0 in random order, int64 (N,)."""
    order = generator.permutation(len(owners))
    order = order[np.argsort(owners[order], kind="stable")]
    sizes = np.bincount(owners, minlength=clients)
    ranks = np.empty(len(owners), dtype=np.int64)
    ranks[order] = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks
