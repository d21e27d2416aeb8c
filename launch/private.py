"""From privacy's keys to the mechanism of a run: what is refused, how much noise, how many rounds, at what cost."""

import math
from dataclasses import dataclass, replace
from typing import Any

from fedsim.accounting import Accountant, AccountantName, noise_for, update_noise_multiplier
from fedsim.errors import ConfigurationError
from fedsim.method import Method
from fedsim.options import CommunicationOptions, PrivacyOptions, RunOptions, ServerOptions
from fedsim.privacy import AdaptiveClip, Mechanism


@dataclass(frozen=True)
class Private:
    """A run's privacy, settled.

    Attributes:
        mechanism: what stands in for the method's aggregate; None where the run is not private.
        run: the run's options, with as many rounds as the budget has.
        noise_multiplier: of the cohort that noise was chosen for, settled where it was left to the budget.
        notes: what is promised, a line each.
    """

    mechanism: Mechanism | None
    run: RunOptions
    noise_multiplier: float | None
    notes: tuple[str, ...] = ()


def refuse_unprotected(
    method: Method,
    privacy: PrivacyOptions,
    run: RunOptions,
    server: ServerOptions,
    communication: CommunicationOptions,
) -> None:
    """Refuses settings under which the guarantee would not hold, with the reason.

    Raises:
        ConfigurationError: what was given, why it cannot be private, and what to give.
    """
    if privacy.clip is None:
        return
    if method.private_refusal:
        raise ConfigurationError(
            f"privacy.clip is given, but {method.label} cannot be private: {method.private_refusal} (docs/privacy.md)"
        )
    if server.weighting != "uniform":
        raise ConfigurationError(
            "privacy.clip is given with server.weighting examples: by its weight one client would change the sum by"
            " more than the clip; give uniform"
        )
    if run.on_bad_client == "fail":
        raise ConfigurationError(
            "privacy.clip is given with on_bad_client fail: that a run stops would tell of one client; give skip"
        )
    fixed = run.cohort_sampling == "without_replacement"
    if communication.error_feedback and fixed:
        raise ConfigurationError(
            "privacy.clip is given with communication.error_feedback: what clients owe tells who was sampled before,"
            " and without replacement who was not; give --cohort_sampling poisson, or leave it out"
        )
    if method.sends_by_history and fixed:
        raise ConfigurationError(
            f"privacy.clip is given, but what clients of {method.label} send tells who was sampled before, and without"
            " replacement who was not; give --cohort_sampling poisson"
        )
    if privacy.accountant == "pld" and fixed:
        raise ConfigurationError(
            "privacy.accountant is pld, which has no bound for sampling without replacement; give rdp, or"
            " --cohort_sampling poisson"
        )


def settle(options: PrivacyOptions, method: Method, run: RunOptions, population: int) -> Private:
    """Chooses noise and rounds within the budget, and states what they cost.

    Args:
        options: the keys, of which `refuse_unprotected` found nothing.
        method: whose server steps.
        run: rounds, cohort and how it is sampled.
        population: how many clients may be sampled.

    Raises:
        ConfigurationError: no noise, or no round, keeps the budget.
    """
    if options.clip is None:
        return Private(None, run, None)
    claimed = _claimed_cohort(options, run, population)
    noise = _noise(options, run, claimed)
    simulated = replace(claimed, noise_multiplier=noise)
    scale = run.cohort_size / claimed.cohort
    own = replace(claimed, cohort=run.cohort_size, population=population, noise_multiplier=noise * scale)
    rounds = run.rounds
    if options.epsilon is not None:
        rounds = simulated.affordable(options.epsilon, run.rounds)
        if not rounds:
            raise ConfigurationError(
                f"privacy.epsilon is {options.epsilon:g}, and one round of noise_multiplier {noise:g} costs"
                f" {simulated.epsilon(1):.3g}; give more noise, a larger epsilon, or no privacy.noise_multiplier"
            )
    adaptive, on_update = _adaptive(options, noise, claimed.cohort, scale)
    mechanism = Mechanism(
        clip=options.clip,
        noise_multiplier=on_update * scale,
        cohort_size=run.cohort_size,
        normalize=options.normalize and not method.assigns,
        adaptive=adaptive,
        accountant=own,
        simulated=None if own == simulated else simulated,
    )
    settled = replace(run, rounds=rounds)
    notes = (*_budget_note(run, rounds, mechanism), *promise(mechanism, rounds), *_warnings(options, mechanism))
    return Private(mechanism, settled, noise, notes)


def promise(mechanism: Mechanism, rounds: int) -> tuple[str, ...]:
    """What so many rounds cost, in lines for the user: the true epsilon, and the simulated one where there is one."""
    lines = [_sentence("private" if mechanism.simulated is None else "true privacy", mechanism.accountant, rounds)]
    if mechanism.simulated is not None:
        lines.append(_sentence("simulated, which this run does not have", mechanism.simulated, rounds))
    return tuple(lines)


def summary_of(options: PrivacyOptions, mechanism: Mechanism, rounds: int) -> dict[str, Any]:
    """What summary.json says of privacy; an epsilon without bound is null."""
    own, simulated = mechanism.accountant, mechanism.simulated
    found: dict[str, Any] = {
        "epsilon": _finite(own.epsilon(rounds)),
        "delta": own.delta,
        "neighbours": own.neighbours,
        "accountant": own.kind,
        "sampling": own.sampling,
        "cohort": own.cohort,
        "population": own.population,
        "noise_multiplier": own.noise_multiplier,
        "clip": mechanism.clip,
        "clip_quantile": options.clip_quantile,
        "update_noise_multiplier": mechanism.noise_multiplier,
        "count_noise": None if mechanism.adaptive is None else mechanism.adaptive.count_noise,
        "noise_from": options.noise_from,
        "rounds": rounds,
    }
    if simulated is not None:
        found["simulated"] = {
            "epsilon": _finite(simulated.epsilon(rounds)),
            "cohort": simulated.cohort,
            "population": simulated.population,
            "noise_multiplier": simulated.noise_multiplier,
        }
    return found


def _claimed_cohort(options: PrivacyOptions, run: RunOptions, population: int) -> Accountant:
    """The cohort that noise is chosen for, as an accountant of a run without noise."""
    cohort = options.simulated_cohort or run.cohort_size
    clients = options.simulated_population or population
    if cohort > clients:
        raise ConfigurationError(
            f"privacy.simulated_cohort is {cohort}, out of {clients} clients; give a privacy.simulated_population that"
            " has so many"
        )
    if clients < population:
        raise ConfigurationError(
            f"privacy.simulated_population is {clients}, below the {population} clients of the run, so that the"
            " simulated epsilon would be the worse one; give at least so many"
        )
    if cohort < run.cohort_size:
        raise ConfigurationError(
            f"privacy.simulated_cohort is {cohort}, below cohort_size {run.cohort_size}; noise is only scaled down"
        )
    kind: AccountantName = options.accountant or ("pld" if run.cohort_sampling == "poisson" else "rdp")
    delta = options.delta if options.delta is not None else float(clients) ** -1.1
    if not 0 < delta < 1:
        raise ConfigurationError(f"privacy.delta of {clients} client would be {delta:g}; give one in (0, 1)")
    return Accountant(kind, run.cohort_sampling, cohort, clients, 0.0, delta)


def _noise(options: PrivacyOptions, run: RunOptions, claimed: Accountant) -> float:
    """The noise that was given, or the least that the budget has for all rounds."""
    if options.noise_multiplier is not None:
        return options.noise_multiplier
    if options.epsilon is None:
        return 0.0
    budget = options.epsilon, claimed.delta, run.rounds
    return noise_for(*budget, claimed.kind, claimed.sampling, claimed.cohort, claimed.population)


def _adaptive(options: PrivacyOptions, noise: float, cohort: int, scale: float) -> tuple[AdaptiveClip | None, float]:
    """How the clip moves, and what noise the sum then needs for both to cost what the sum alone would."""
    if options.clip_quantile is None:
        return None, noise
    count_noise = cohort / 20 if options.clip_count_noise is None else options.clip_count_noise
    on_update = update_noise_multiplier(noise, count_noise) if noise else 0.0
    return AdaptiveClip(options.clip_quantile, options.clip_lr, count_noise * scale if noise else 0.0), on_update


def _budget_note(run: RunOptions, rounds: int, mechanism: Mechanism) -> tuple[str, ...]:
    if rounds == run.rounds:
        return ()
    whose = "" if mechanism.simulated is None else ", the simulated one,"
    return (f"privacy.epsilon{whose} is spent after {rounds} of {run.rounds} rounds, with which the run ends",)


def _warnings(options: PrivacyOptions, mechanism: Mechanism) -> tuple[str, ...]:
    """What makes an epsilon worth less than it looks, a line each."""
    delta, population = mechanism.accountant.delta, mechanism.accountant.population
    lines = []
    if options.noise_from == "seed" and mechanism.noise_multiplier:
        lines.append("noise comes from the seed, and who knows that can take it away: such a run protects nobody")
    if mechanism.noise_multiplier and delta >= 1 / population:
        lines.append(
            f"privacy.delta is {delta:.3g}, not below 1 / {population:,}: to publish a client's data now and then would"
            " be as private"
        )
    return tuple(lines)


def _sentence(what: str, accountant: Accountant, rounds: int) -> str:
    epsilon, noise = accountant.epsilon(rounds), accountant.noise_multiplier
    if not math.isfinite(epsilon):
        return f"{what}: no; there is no noise, so that epsilon has no bound"
    about = "about " if accountant.sampling == "poisson" else ""
    return (
        f"{what}: epsilon {epsilon:.4g} at delta {accountant.delta:.3g} after {rounds} round{'s' * (rounds != 1)},"
        f" neighbours {accountant.neighbours}"
        f" (noise multiplier {noise:.4g}, {about}{accountant.cohort:,} of {accountant.population:,} clients a round,"
        f" {accountant.sampling.replace('_', ' ')}, {accountant.kind.upper()})"
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
