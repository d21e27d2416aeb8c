"""What a private run costs: epsilon of rounds of the subsampled Gaussian mechanism, and the noise that a budget needs.

One unit of privacy is a client with all its data. A round draws a cohort, clips every update to an L2 norm, adds them
up and adds Gaussian noise to the sum. The curves and their composition are dp-accounting's; this room says which of
them fits which sampling, and with which noise.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

from fedsim.errors import ConfigurationError

Sampling = Literal["poisson", "without_replacement"]
AccountantName = Literal["rdp", "pld"]

NEIGHBOURS: dict[Sampling, str] = {
    "poisson": "add or remove one client",
    "without_replacement": "replace one client",
}
SENSITIVITY_CLIPS: dict[Sampling, int] = {"poisson": 1, "without_replacement": 2}

# PLD rounds losses up to multiples of an interval. It is dp-accounting's own where noise is above a half and epsilon
# below 100. Elsewhere losses are long, and a table of them is kept below so many entries a round, and so many in all.
LEAST_INTERVAL = 1e-4
ROUND_INTERVALS = 2.5e5
MOST_INTERVALS = 1e6
# Beyond so many standard deviations of the noise, dp-accounting drops the tail (a mass of exp(-50)) into delta.
TAIL_DEVIATIONS = 10

NOISE_TOLERANCE = 1e-5
MOST_LOG_NOISE = 15.0


@dataclass(frozen=True)
class Accountant:
    """Composes equal rounds of the subsampled Gaussian mechanism.

    Poisson sampling (every client takes part by its own coin): neighbours by adding or removing one client, which
    changes the sum of clipped updates by at most one clip. RDP is that of Mironov, Talwar and Zhang 2019, PLD that of
    Doroshenko et al. 2022, which is tighter and slower. The mean must divide by the expected cohort: the size of the
    one that was drawn is private.

    Sampling without replacement (cohorts of one size): neighbours by replacing one client, as the population is public.
    RDP is the bound of Wang, Balle and Kasiviswanathan 2019 (Theorem 27). It starts from the Renyi divergence
    a / (2 s^2) of order a of the mechanism on two cohorts that differ in one member, where s is the noise over the L2
    distance of their sums. Replacing a client moves the sum by up to two clips, from u to -u, so that
    s = noise_multiplier / 2. dp-accounting does not halve it: `_compute_rdp_sample_wor_gaussian` takes "the ratio of
    the standard deviation to the l2-sensitivity" as given and puts it into a / (2 s^2), whatever the relation of
    neighbours (as its accountant does for a plain Gaussian). So it is halved here. (Its docstring of GaussianDpEvent
    speaks of the noise over the clip; the two are the same only where one client is added or removed.)

    Args:
        kind: rdp, or pld, which dp-accounting has for Poisson sampling alone. The first epsilon takes half a second
            by rdp and a second or two by pld, further ones of the same object a millisecond and some tenths.
        sampling: how cohorts are drawn.
        cohort: clients a round, the expected number where sampling is poisson; 1 to population.
        population: how many clients there are.
        noise_multiplier: the standard deviation of the noise on the sum of the clipped updates, over the clip; 0 or
            more.
        delta: in (0, 1), below one over the population to mean much.

    Raises:
        ConfigurationError: one of these is out of its range, or pld without Poisson sampling.
    """

    kind: AccountantName
    sampling: Sampling
    cohort: int
    population: int
    noise_multiplier: float
    delta: float

    def __post_init__(self) -> None:
        if self.kind == "pld" and self.sampling != "poisson":
            raise ConfigurationError(
                "the privacy accountant is pld; expected rdp where cohorts are sampled without replacement, as pld has "
                "no such bound; take rdp, or Poisson sampling"
            )
        if not 1 <= self.cohort <= self.population:
            raise ConfigurationError(
                f"the cohort of a private run is {self.cohort}; expected 1 to the population of {self.population}"
            )
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigurationError(f"the noise multiplier is {self.noise_multiplier}; expected 0 or more, and finite")
        if not 0 < self.delta < 1:
            raise ConfigurationError(
                f"the delta of privacy is {self.delta}; expected a number in (0, 1); take less than 1 / population"
            )

    @property
    def neighbours(self) -> str:
        """Between which two populations epsilon holds; epsilons of different relations do not compare."""
        return NEIGHBOURS[self.sampling]

    def epsilon(self, rounds: int) -> float:
        """What so many rounds cost: 0 for none, infinite without noise."""
        if not rounds:
            return 0.0
        if not self.noise_multiplier:
            return math.inf
        spent = self._rdp_epsilon(rounds) if self.kind == "rdp" else self._pld_epsilon(rounds)
        return float(spent)

    def affordable(self, epsilon: float, most: int) -> int:
        """Counts the rounds that a budget pays.

        Args:
            epsilon: the budget, above 0.
            most: where counting stops.

        Returns:
            The greatest number of rounds, 0 to most, that costs no more than epsilon.
        """
        if self.epsilon(most) <= epsilon:
            return most
        within, beyond = 0, most
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if self.epsilon(middle) <= epsilon:
                within = middle
            else:
                beyond = middle
        return within

    def _rdp_epsilon(self, rounds: int) -> float:
        from dp_accounting import rdp

        orders = rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS
        return rdp.compute_epsilon(orders, rounds * self._round_rdp, self.delta)[0]

    @cached_property
    def _round_rdp(self) -> np.ndarray:
        """The Renyi divergence of one round at each of dp-accounting's orders."""
        import dp_accounting
        from dp_accounting import rdp

        gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier / SENSITIVITY_CLIPS[self.sampling])
        relations = dp_accounting.NeighboringRelation
        if self.sampling == "poisson":
            event: Any = dp_accounting.PoissonSampledDpEvent(self.cohort / self.population, gaussian)
            accountant = rdp.RdpAccountant(neighboring_relation=relations.ADD_OR_REMOVE_ONE)
        else:
            event = dp_accounting.SampledWithoutReplacementDpEvent(self.population, self.cohort, gaussian)
            accountant = rdp.RdpAccountant(neighboring_relation=relations.REPLACE_ONE)
        with _without_warnings():
            return accountant.compose(event).rdp

    def _pld_epsilon(self, rounds: int, coarser: int = 1) -> float:
        """Composes by FFT; where everybody takes part, rounds are one Gaussian with less noise."""
        interval = coarser * self._interval(rounds)
        if self.cohort == self.population:
            composed = _pld(self.noise_multiplier / math.sqrt(rounds), 1.0, interval)
        else:
            if interval not in self._round_plds:
                self._round_plds[interval] = _pld(self.noise_multiplier, self.cohort / self.population, interval)
            composed = self._round_plds[interval].self_compose(rounds)
        return composed.get_epsilon_for_delta(self.delta)

    @cached_property
    def _round_plds(self) -> dict[float, Any]:
        """Privacy loss distributions of one round, by their interval."""
        return {}

    def _interval(self, rounds: int) -> float:
        """How finely losses are told apart: as dp-accounting does, doubled until the losses fit into memory."""
        longest = (TAIL_DEVIATIONS + 0.5 / self.noise_multiplier) / self.noise_multiplier
        needed = max(longest / ROUND_INTERVALS, self._rdp_epsilon(rounds) / MOST_INTERVALS)
        return LEAST_INTERVAL * 2 ** max(0, math.ceil(math.log2(needed / LEAST_INTERVAL)))


def _pld(noise: float, probability: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise, sampling_prob=probability, value_discretization_interval=interval
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences what dp-accounting says of every fractional order that does not converge; others make the bound then."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def noise_for(
    epsilon: float,
    delta: float,
    rounds: int,
    kind: AccountantName,
    sampling: Sampling,
    cohort: int,
    population: int,
) -> float:
    """Finds the least noise with which a run keeps to its budget.

    Args:
        epsilon: what all rounds may cost, above 0.
        delta: see `Accountant`, as kind, sampling, cohort and population.
        rounds: in all, at least 1.
        kind: of accountant.
        sampling: how cohorts are drawn.
        cohort: clients a round.
        population: how many clients there are.

    Returns:
        The noise multiplier, to a relative 1e-5 above the least that will do: epsilon is kept, and by so much that it
        still is where another machine rounds it otherwise.

    Raises:
        ConfigurationError: a number is out of its range, or no noise keeps so small an epsilon.
    """
    if not 0 < epsilon < math.inf:
        raise ConfigurationError(f"the epsilon of privacy is {epsilon}; expected a number above 0, and finite")
    if rounds < 1:
        raise ConfigurationError(f"a private run has {rounds} rounds; expected 1 or more")
    accountant = Accountant(kind, sampling, cohort, population, 1.0, delta)

    def spent(noise: float) -> float:
        return replace(accountant, noise_multiplier=noise).epsilon(rounds)

    if kind == "rdp":
        return _least_noise(spent, epsilon, 1.0, 0.25)

    def about(noise: float) -> float:
        return replace(accountant, noise_multiplier=noise)._pld_epsilon(rounds, coarser=16)

    start = noise_for(epsilon, delta, rounds, "rdp", sampling, cohort, population)
    return _least_noise(spent, epsilon, _least_noise(about, epsilon, start, 0.25), 1e-3)


def _least_noise(spent: Callable[[float], float], epsilon: float, start: float, step: float) -> float:
    """Finds where epsilon, as a falling function of the noise, comes down to the budget.

    Args:
        spent: epsilon of a noise multiplier.
        epsilon: the budget.
        start: a guess at the noise.
        step: how far off the guess may be, as a fraction; only the time depends on it.

    Returns:
        A noise of which spent is epsilon or less.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    @cache
    def overspent(log_noise: float) -> float:
        """Log of epsilon over the budget, within bounds that keep the search from leaping."""
        return max(-5.0, min(5.0, math.log(max(spent(math.exp(log_noise)), sys.float_info.min) / epsilon)))

    low, high = _bracket(overspent, math.log(start), step)
    nudge = NOISE_TOLERANCE / 4
    found = brentq(overspent, low, high, xtol=nudge) + nudge  # it can be the root to the last bit
    while overspent(found) > 0:
        found, nudge = found + nudge, 2 * nudge
    return math.exp(found)


def _bracket(overspent: Callable[[float], float], start: float, step: float) -> tuple[float, float]:
    """Steps away from a guess, further each time, until the budget lies between two noises.

    Args:
        overspent: of the log of a noise multiplier; it falls, and is 0 or less where the budget is kept.
        start: log of the guess.
        step: the first one.

    Returns:
        Logs of a noise that is too little and of one that is enough.

    Raises:
        ConfigurationError: no noise keeps the budget, or any does.
    """
    step = -step if overspent(start) <= 0 else step
    before, here = start, start + step
    while (overspent(here) <= 0) == (step < 0):
        step *= 2
        before, here = here, here + step
        if abs(here) > MOST_LOG_NOISE:
            raise ConfigurationError(
                f"the epsilon of privacy is {'kept by any noise' if step < 0 else 'below what any noise keeps'}; "
                f"expected one that a noise multiplier of {math.exp(-MOST_LOG_NOISE):.0e} to "
                f"{math.exp(MOST_LOG_NOISE):.0e} just keeps; give a {'smaller' if step < 0 else 'larger'} one, or the "
                "noise"
            )
    return min(before, here), max(before, here)


def update_noise_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """Splits a round's noise between the updates and the count of clipped ones that adapts the clip.

    Andrew, Thakkar, McMahan and Ramaswamy 2021, Theorem 1. Every client sends its clipped update, of norm at most the
    clip, and a bit b that says whether its norm was within the clip. The server adds up b - 1/2, which is 1/2 or -1/2:
    adding or removing a client moves that sum by 1/2 and the sum of updates by one clip. Over the standard deviations
    of their noise these are 1 / (2 count_noise) and 1 / z, where z is what this function returns, and both sums are one
    Gaussian query of the squared distance 1 / z^2 + 1 / (2 count_noise)^2. Where that is 1 / noise_multiplier^2, the
    round costs what it costs without the count. Replacing a client moves the shifted bit by 1 and the update by two
    clips, each twice as far, so that the same split holds there.

    The fraction within the clip is the noisy sum over the (expected) cohort plus 1/2: where sampling is poisson, the
    size of the cohort that was drawn is private.

    Args:
        noise_multiplier: what the accountant is told, 0 or more.
        count_noise: the standard deviation of the noise on the sum of b - 1/2, in clients; the paper takes a twentieth
            of the cohort.

    Returns:
        z, the noise on the sum of updates over the clip, above noise_multiplier; 0 without noise.

    Raises:
        ConfigurationError: the count has so little noise that it alone costs more than the round may.
    """
    if not noise_multiplier:
        return 0.0
    if not noise_multiplier < 2 * count_noise:
        raise ConfigurationError(
            f"privacy.clip_count_noise is {count_noise:g}; expected more than {noise_multiplier / 2:g}, half the noise "
            "multiplier; raise it, or lower the noise multiplier"
        )
    return noise_multiplier / math.sqrt(1 - (noise_multiplier / (2 * count_noise)) ** 2)
