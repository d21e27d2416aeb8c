"""User-level differential privacy: the server's step knows clients only by a noisy sum of clipped uploads.

FLASC, Section 4.5 and Appendix A (DP-FedAdam): decode, clip, sum, divide by the clip, add Gaussian noise, divide by the
cohort (De et al. 2022), and then the server's optimiser as ever. What each end of it promises is in docs/privacy.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.accounting import Accountant
from fedsim.aggregation import Arrived
from fedsim.method import Method
from fedsim.sparse import SparseVector
from fedsim.state import ServerState, Shared

CLIP = "clip"
"""Under this name the server keeps the clip where it adapts, a number in float64."""
CLIP_BOUNDS = 1e-30, 1e30
"""Of a clip that adapts, by which norms can still be divided."""
_PIECE = 2**20
"""Noise is drawn in pieces of so many values, as it is float64 and P may be a whole backbone."""


@dataclass(frozen=True)
class AdaptiveClip:
    """How the clip follows the lengths of updates (Andrew et al. 2021, Algorithm 1).

    Attributes:
        quantile: the fraction of the cohort that is to be within the clip, in [0, 1].
        lr: how fast.
        count_noise: standard deviation of the noise on the number of clients within it, for this run's cohort.
    """

    quantile: float
    lr: float
    count_noise: float

    def next_clip(self, clip: float, noisy_fraction: float) -> float:
        """C exp(-lr (b - quantile)): down where more than that fraction was within it, and never out of all bounds."""
        low, high = (math.log(bound) for bound in CLIP_BOUNDS)
        return math.exp(min(max(math.log(clip) - self.lr * (noisy_fraction - self.quantile), low), high))


@dataclass(frozen=True)
class Mechanism:
    """The Gaussian mechanism of a run, and what it costs.

    Attributes:
        clip: the most that one client adds to the sum, in Euclidean norm; where it adapts, at first.
        noise_multiplier: standard deviation of the noise on the sum, over the clip, for the cohort of this run.
        cohort_size: what the sum is divided by, however many arrive.
        normalize: whether the update stays in units of the clip.
        adaptive: how the clip moves; None for a fixed one.
        accountant: of this run's cohort, population and noise.
        simulated: of those that the noise was chosen for, where they are other ones; else None.
    """

    clip: float
    noise_multiplier: float
    cohort_size: int
    normalize: bool
    adaptive: AdaptiveClip | None
    accountant: Accountant
    simulated: Accountant | None = None

    def aggregate(
        self, method: Method, state: ServerState, shared: Shared, noise: Callable[[], np.random.Generator]
    ) -> "PrivateSum":
        """Returns the aggregate of one round, in place of the method's own.

        Args:
            method: says what may travel; what it makes of uploads is refused before a run (`Method.private_refusal`).
            state: the server's, whose clip moves where it adapts.
            shared: what everybody knows of the round.
            noise: makes the round's stream of noise, on the server worker alone.
        """
        return PrivateSum(self, state, method.could_upload(shared), noise)

    def spent(self, round: int) -> dict[str, float]:
        """Returns what the run's rounds have cost so far, by the names under which metrics.csv has it."""
        found = {"privacy/epsilon": self.accountant.epsilon(round)}
        if self.simulated is not None:
            found["privacy/simulated_epsilon"] = self.simulated.epsilon(round)
        return found


class PrivateSum:
    """The noisy sum of clipped updates over the expected cohort: adding or removing a client moves it by one clip.

    An upload that is not finite counts as zero. The sum is in float64, so that its rounding is no part of what a client
    changes.

    Args:
        mechanism: clip and noise.
        state: the server's; measures of the round are left there.
        covered: the entries of P that any client could send in this round, int64 (k,); None for all. They get noise,
            whether or not anybody sent them.
        noise: makes the stream of noise.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        state: ServerState,
        covered: Tensor | None,
        noise: Callable[[], np.random.Generator],
    ) -> None:
        self._mechanism, self._state, self._noise = mechanism, state, noise
        device = state.vector.device
        self._clip = float(state.private.get(CLIP, torch.tensor(mechanism.clip, dtype=torch.float64)))
        self._total = torch.zeros(state.layout.length, dtype=torch.float64, device=device)
        self._covered = None if covered is None else covered.to(device)
        self._may = None if covered is None else torch.zeros(len(self._total), dtype=torch.bool, device=device)
        if self._may is not None:
            self._may[self._covered] = True
        self._arrived = self._within = 0

    def add(self, arrived: Arrived) -> None:
        """Adds one upload, clipped, in units of the clip; its weight and its examples have no say."""
        update = arrived.update
        if self._may is not None and not bool(self._may[_named(update)].all()):
            raise AssertionError(f"client {arrived.client} sent entries of P that get no noise in this round")
        values, length = update.values.double(), euclidean_norm(update.values)
        self._arrived += 1
        self._within += length <= self._clip
        if not np.isfinite(length):
            return
        share = values / max(length, self._clip)
        if update.indices is None:
            self._total += share
        else:
            self._total[update.indices.to(self._total.device)] += share

    def finish(self) -> Tensor:
        """Returns the noisy mean, (P,); also where nothing arrived, as nobody must learn that from a missing step."""
        mechanism, noise = self._mechanism, self._noise()
        add_noise(self._total, self._covered, mechanism.noise_multiplier, noise)
        unit = 1.0 if mechanism.normalize else self._clip
        update = (self._total * (unit / mechanism.cohort_size)).to(self._state.vector.dtype)
        self._report()
        if mechanism.adaptive is not None:
            self._state.private[CLIP] = torch.tensor(self._moved(mechanism.adaptive, noise), dtype=torch.float64)
        return update

    def _moved(self, adaptive: AdaptiveClip, noise: np.random.Generator) -> float:
        """The next round's clip. A client counts 1/2 where it is within the clip, and less 1/2 where it is not."""
        balance = self._within - self._arrived / 2 + adaptive.count_noise * float(noise.standard_normal())
        return adaptive.next_clip(self._clip, balance / self._mechanism.cohort_size + 0.5)

    def _report(self) -> None:
        self._state.measures["clip"] = self._clip
        if self._arrived:
            self._state.measures["clipped_fraction"] = 1 - self._within / self._arrived


def euclidean_norm(values: Tensor) -> float:
    """Returns the Euclidean norm, in float64 and without overflow; not finite where a value is not."""
    if not len(values):
        return 0.0
    values = values.double()
    largest = float(values.abs().max())
    if not np.isfinite(largest) or largest == 0:
        return largest
    return largest * float((values / largest).norm())


def add_noise(total: Tensor, covered: Tensor | None, deviation: float, noise: np.random.Generator) -> None:
    """Adds independent Gaussian noise to a vector, in place, piece by piece.

    Args:
        total: (P,) float64.
        covered: the entries that get noise, int64 (k,); None for all.
        deviation: standard deviation, 0 or more; 0 draws nothing.
        noise: where it comes from; the same numbers on every device.
    """
    if not deviation:
        return
    count = len(total) if covered is None else len(covered)
    for start in range(0, count, _PIECE):
        stop = min(start + _PIECE, count)
        piece = torch.from_numpy(noise.standard_normal(stop - start)).to(total.device) * deviation
        if covered is None:
            total[start:stop] += piece
        else:
            total[covered[start:stop]] += piece


def _named(update: SparseVector) -> Tensor | slice:
    """The entries of P that an update names."""
    return slice(None) if update.indices is None else update.indices
