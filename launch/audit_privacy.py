"""Audits the mechanism of private runs: can somebody who sees every noisy sum tell whether a client took part?

    python -m launch.audit_privacy
    python -m launch.audit_privacy --sabotage noise     # must fail, or the audit could not
    python -m launch.audit_privacy --sabotage clip

A canary sends the same update in every round, ten times longer than the clip, so that exactly the clip is left of it;
every client takes part in every round. In half of the trials the canary is there, in the other half it is not. The
auditor knows its update, adds up what every noisy sum has in that direction, and says "there" above half of what the
canary would add. How often that is right bounds from below, at 95%, how far apart the two cases are, and so epsilon: by
the trade-off of a Gaussian (Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning"), which is
what such a mechanism has. A bound above what the accountant claims means that the claim is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor, nn

from fedsim.client import Trained
from fedsim.exchange import Exchange
from fedsim.frozen import FrozenBackbone
from fedsim.method import Arrived, ClientJob, Plan, ServerState, Shared
from fedsim.options import CommunicationOptions, PrivacyOptions, RunOptions, ServerOptions, require
from fedsim.parameters import Layout, Place
from fedsim.privacy import Mechanism
from fedsim.seeding import Purpose, generator
from fedsim.server import server_optimizer
from launch.arguments import Arguments
from launch.private import settle
from methods.flasc import FLASC

Sabotage = Literal["none", "noise", "clip"]

ENTRIES = 64
"""Of P. More would change nothing: the auditor looks in one direction."""
CLIP = 0.5
"""Any would do."""
TOO_LONG = 10.0
"""How long the canary's update is, over the clip."""
_FAR = 1000.0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """What an audit found.

    Attributes:
        claimed: the accountant's epsilon.
        bound: what epsilon is at least, at 95%.
        hits: how often the canary was seen where it was.
        alarms: how often where it was not.
        trials: of each.
    """

    claimed: float
    bound: float
    hits: int
    alarms: int
    trials: int

    @property
    def passed(self) -> bool:
        """Whether the claim can be true."""
        return self.bound <= self.claimed


def main(argv: Sequence[str]) -> int:
    """Audits and prints what was found; the exit status is 1 where the claim is refuted."""
    arguments = _arguments(argv)
    verdict = audit(
        arguments.epsilon, arguments.rounds, arguments.clients, arguments.trials, arguments.seed, arguments.sabotage
    )
    print(
        f"claimed epsilon {verdict.claimed:.3f}; the canary was seen in {verdict.hits:,} of {verdict.trials:,} trials"
        f" with it and {verdict.alarms:,} of {verdict.trials:,} without: epsilon is at least {verdict.bound:.3f}"
        f" ({CONFIDENCE:.0%}): {'passed' if verdict.passed else 'FAILED, the claim is refuted'}"
    )
    return 0 if verdict.passed else 1


def audit(epsilon: float, rounds: int, clients: int, trials: int, seed: int, sabotage: Sabotage = "none") -> Verdict:
    """Plays trials with and without a canary and bounds epsilon by them.

    Args:
        epsilon: what the run may spend, for which the noise is found.
        rounds: of a trial.
        clients: of a trial, all of whom take part; the canary is one of them, or none.
        trials: with the canary and without, together.
        seed: of the noise and the canary's direction.
        sabotage: noise halves the noise behind the accountant's back, clip leaves clipping out.
    """
    options = PrivacyOptions(clip=CLIP, epsilon=epsilon, delta=1e-5, accountant="pld", noise_from="seed")
    run = RunOptions(rounds=rounds, cohort_size=clients, cohort_sampling="poisson")
    method = FLASC(upload_density=0.25)
    mechanism = settle(options, method, run, clients).mechanism
    assert mechanism is not None
    scene = _Scene(method, _sabotaged(mechanism, sabotage), clients, rounds, seed)
    half = trials // 2
    threshold = rounds / 2  # of a canary that adds one clip in each
    hits = sum(scene.seen(True, trial) > threshold for trial in range(half))
    alarms = sum(scene.seen(False, half + trial) > threshold for trial in range(half))
    claimed = mechanism.accountant.epsilon(rounds)
    return Verdict(claimed, least_epsilon(hits, alarms, half, mechanism.accountant.delta), hits, alarms, half)


def least_epsilon(hits: int, alarms: int, trials: int, delta: float) -> float:
    """Bounds epsilon from below, by how often a fixed test was right.

    Args:
        hits: how often it said "there" of so many trials with the canary.
        alarms: how often of as many without.
        trials: of each.
        delta: of the guarantee.

    Returns:
        Epsilon at delta of the Gaussian trade-off with the least separation that the counts allow: Clopper and
        Pearson's bounds of both rates, each wrong in half of 1 - CONFIDENCE, so that both hold at CONFIDENCE.
    """
    wrong = (1 - CONFIDENCE) / 2
    least_hits = stats.beta.ppf(wrong, hits, trials - hits + 1) if hits else 0.0
    most_alarms = stats.beta.ppf(1 - wrong, alarms + 1, trials - alarms) if alarms < trials else 1.0
    separation = float(stats.norm.ppf(least_hits) - stats.norm.ppf(most_alarms))
    return gaussian_epsilon(separation, delta) if separation > 0 else 0.0


def gaussian_epsilon(separation: float, delta: float) -> float:
    """Epsilon at delta of telling N(separation, 1) from N(0, 1) (Balle and Wang 2018, Theorem 8), by bisection."""
    low, high = 0.0, 1.0

    def spent(epsilon: float) -> float:
        first, second = separation / 2 - epsilon / separation, -separation / 2 - epsilon / separation
        return float(stats.norm.cdf(first) - np.exp(epsilon + stats.norm.logcdf(second)))

    if spent(0.0) <= delta:
        return 0.0
    while spent(high) > delta:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return low


class _Scene:
    """A server, clients that always send the same, and a canary; uploads are encoded and decoded as in a run."""

    def __init__(self, method: FLASC, mechanism: Mechanism, clients: int, rounds: int, seed: int) -> None:
        self._method, self._mechanism, self._rounds, self._seed = method, mechanism, rounds, seed
        layout = Layout((Place("layer.weight", torch.Size([ENTRIES]), 0, "backbone", "layer"),))
        vector = nn.Parameter(torch.zeros(ENTRIES))
        self._state = ServerState(
            layout,
            vector,
            server_optimizer(ServerOptions(), vector),
            vector.detach().clone(),
            FrozenBackbone(nn.Module()),
        )
        random = np.random.default_rng(seed)
        self._direction = np.zeros(ENTRIES)
        self._direction[random.choice(ENTRIES, ENTRIES // 4, replace=False)] = 1
        self._direction /= np.linalg.norm(self._direction)
        canary = self._direction * CLIP * TOO_LONG
        others = [random.standard_normal(ENTRIES) * CLIP for _ in range(clients - 1)]
        self._canary, *self._others = [self._upload(number, sent) for number, sent in enumerate([canary, *others])]
        self._known = sum((self._in_its_direction([other]) for other in self._others), 0.0)

    def seen(self, canary: bool, trial: int) -> float:
        """What all rounds of a trial have in the canary's direction, in clips, less what others are known to add."""
        uploads = [self._canary, *self._others] if canary else self._others
        secret = self._seed + 1 + trial
        found = 0.0
        for round in range(1, self._rounds + 1):
            shared = Shared(round, 0, self._state.layout, self._state.initial)
            aggregate = self._mechanism.aggregate(
                self._method, self._state, shared, partial(generator, secret, Purpose.NOISE, round)
            )
            for upload in uploads:
                aggregate.add(upload)
            found += self._along(aggregate.finish())
        return found - self._rounds * self._known

    def _in_its_direction(self, uploads: Sequence[Arrived]) -> float:
        """What uploads add to a sum without noise."""
        still = replace(self._mechanism, noise_multiplier=0.0)
        shared = Shared(1, 0, self._state.layout, self._state.initial)
        aggregate = still.aggregate(self._method, self._state, shared, lambda: np.random.default_rng(0))
        for upload in uploads:
            aggregate.add(upload)
        return self._along(aggregate.finish())

    def _along(self, update: Tensor) -> float:
        """What a noisy mean has in the canary's direction, as a sum, in clips."""
        unit = self._mechanism.cohort_size * self._mechanism.clip / CLIP
        return float(update.double().numpy() @ self._direction) * unit

    def _upload(self, client: int, sent: np.ndarray) -> Arrived:
        """A client's message as the method sends it, written and read."""
        exchange, start = Exchange(CommunicationOptions(), ENTRIES), self._state.initial
        shared = Shared(1, 0, self._state.layout, start)
        job = ClientJob(client, client, Plan(), shared, start, start, np.empty((0, 1), np.int64), {}, 0)
        trained = Trained(job, start - torch.from_numpy(sent).to(start), {})
        payload = exchange.send_upload(self._method, trained, 1, f"the upload of client {client}").payload
        update, beside, examples = exchange.read_upload(payload, None, start)
        return Arrived(client, Plan(), update, beside, examples, 1.0)


def _sabotaged(mechanism: Mechanism, sabotage: Sabotage) -> Mechanism:
    """The mechanism that really runs, where that is not the one that is accounted for."""
    if sabotage == "noise":
        return replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2)
    if sabotage == "clip":  # so far away that it cuts nothing off, with the noise that there was
        return replace(mechanism, clip=mechanism.clip * _FAR, noise_multiplier=mechanism.noise_multiplier / _FAR)
    return mechanism


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Arguments("audit_privacy", "Audits the mechanism of private runs.")
    parser.add_argument("--epsilon", type=float, default=1.5, help="what is claimed, above 0")
    parser.add_argument("--rounds", type=int, default=4, help="of a trial")
    parser.add_argument("--clients", type=int, default=5, help="all of whom take part in every round")
    parser.add_argument("--trials", type=int, default=4000, help="half of them with the canary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sabotage", choices=get_args(Sabotage), default="none")
    arguments = parser.parse_args(argv)
    require("--epsilon", arguments.epsilon, 0 < arguments.epsilon < float("inf"), "a number above 0")
    for name, least in (("rounds", 1), ("clients", 2), ("trials", 2), ("seed", 0)):
        require(f"--{name}", getattr(arguments, name), getattr(arguments, name) >= least, f"{least} or more")
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
