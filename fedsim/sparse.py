"""Sparse vectors, and the exact choice of the largest entries of a vector.

Everything here agrees on one order of importance: by absolute value, and among equal values the lowest index first.
The choice is made on the bits of |x| read as integers, which order exactly like the values (denormals too).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ConfigurationError

# By float dtype: the integer dtype of the same width, and the bits of infinity (finite values lie below, NaN above).
_BITS = {torch.float32: (torch.int32, 0x7F80_0000), torch.float64: (torch.int64, 0x7FF0_0000_0000_0000)}


@dataclass(frozen=True, eq=False)
class SparseVector:
    """A vector of which only some entries are kept; the others are zero.

    Attributes:
        length: number of entries of the whole vector.
        values: floats (k,), the kept entries; (length,) where the vector is dense.
        indices: int64 (k,), where they stand, strictly increasing, in [0, length); None where the vector is dense.

    Raises:
        ValueError: shapes or the dtype of the indices do not fit. That indices increase is trusted here (no device
            sync) and checked when the vector is encoded.
    """

    length: int
    values: Tensor
    indices: Tensor | None

    def __post_init__(self) -> None:
        expected = self.length if self.indices is None else self.indices.numel()
        if tuple(self.values.shape) != (expected,):
            raise ValueError(f"values must have shape ({expected},), got {tuple(self.values.shape)}")
        if self.indices is None:
            return
        if self.indices.dtype != torch.int64 or self.indices.ndim != 1 or len(self.indices) > self.length:
            given = f"{self.indices.dtype} of shape {tuple(self.indices.shape)}"
            raise ValueError(f"indices must be flat, int64 and at most {self.length}, got {given}")

    @classmethod
    def dense(cls, vector: Tensor) -> "SparseVector":
        """Keeps every entry of a vector (n,), without a copy."""
        return cls(len(vector), vector, None)

    @classmethod
    def at(cls, vector: Tensor, indices: Tensor) -> "SparseVector":
        """Keeps the entries of a vector (n,) at indices int64 (k,), strictly increasing."""
        return cls(len(vector), vector.index_select(0, indices), indices)

    def to_dense(self) -> Tensor:
        """The whole vector (length,), zero where nothing was kept; a dense vector gives its own values, not a copy."""
        if self.indices is None:
            return self.values
        return self.values.new_zeros(self.length).index_copy(0, self.indices, self.values)

    @property
    def count(self) -> int:
        """How many values travel."""
        return self.values.numel()

    def within(self, support: Tensor) -> "SparseVector":
        """Rewrites the vector over the entries of a support, which both sides of a transfer know.

        Args:
            support: int64 (m,), strictly increasing, in [0, length).

        Returns:
            A vector of length m, dense where it has a value for each entry of the support.

        Raises:
            ValueError: some kept entry lies outside the support.
        """
        if self.indices is None:
            return SparseVector.dense(self.values.index_select(0, support))
        if torch.equal(self.indices, support):
            return SparseVector.dense(self.values)
        places = torch.searchsorted(support, self.indices)
        outside = (
            int((support[places.clamp(max=len(support) - 1)] != self.indices).sum()) if len(support) else self.count
        )
        if outside:
            raise ValueError(f"{outside} of {self.count} entries lie outside the {len(support)} that may travel")
        return SparseVector(len(support), self.values, places)

    def beyond(self, support: Tensor, length: int) -> "SparseVector":
        """Undoes `within`: a vector over a support (m,) becomes one of `length` entries, zero outside."""
        indices = support if self.indices is None else support.index_select(0, self.indices)
        return SparseVector(length, self.values, indices)


@dataclass(frozen=True, eq=False)
class IndexSet:
    """Some of the entries of a vector, without values: a mask that travels alone.

    Attributes:
        length: number of entries of the whole vector.
        indices: int64 (k,), strictly increasing, in [0, length).
    """

    length: int
    indices: Tensor


def kept_entries(density: float, length: int) -> int:
    """How many of `length` entries are kept at a density in (0, 1]: the fraction rounded down, and at least one."""
    return max(1, int(density * length))


def density_of(kept: int, length: int) -> float:
    """The density at which `kept_entries` keeps exactly so many of `length`, at least one."""
    return min(1.0, (kept + 0.5) / length)


def require_density(name: str, density: float) -> float:
    """Passes a density through, once it is known to be one.

    Args:
        name: the option that it was given as, for the message.
        density: fraction of entries that are kept.

    Returns:
        The same density, in (0, 1].

    Raises:
        ConfigurationError: the density is not in (0, 1], or is not a number.
    """
    if not 0 < density <= 1:
        raise ConfigurationError(
            f"{name} is {density}; expected a fraction in (0, 1]; set 1 to keep every entry, 0.25 to keep a quarter"
        )
    return density


def topk_indices(vector: Tensor, k: int) -> Tensor:
    """Finds the k entries of largest absolute value; among equal ones, those of lowest index.

    Args:
        vector: float32 or float64 (n,), finite, on any device.
        k: how many, in [1, n].

    Returns:
        int64 (k,), increasing, on the vector's device.

    Raises:
        TypeError: the vector has another dtype.
        ValueError: k is out of range, the vector is not flat, or some entry is not finite.
    """
    return _select(_magnitudes(vector), k)


def topk_per_range(vector: Tensor, density: float, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Finds the largest entries of each part of a vector on its own (`topk_indices` within each part).

    Args:
        vector: float32 or float64 (n,), finite, on any device.
        density: fraction of each part that is kept, in (0, 1]; at least one entry of each.
        ranges: the parts, half-open (start, stop), in order, none empty, together the whole vector.

    Returns:
        int64 (k,), indices into the whole vector, increasing, on the vector's device.

    Raises:
        TypeError: as `topk_indices`.
        ValueError: as `topk_indices`, or the ranges do not cut the vector into parts.
    """
    edges = [0, *(stop for _, stop in ranges)]
    starts = [start for start, _ in ranges]
    if starts != edges[:-1] or edges[-1] != len(vector) or any(start >= stop for start, stop in ranges):
        raise ValueError(f"ranges do not cut a vector of {len(vector)} into parts in order: {list(ranges)}")
    magnitudes = _magnitudes(vector)
    parts = [_select(magnitudes[a:b], kept_entries(density, b - a)) + a for a, b in ranges]
    return torch.cat(parts)


def _magnitudes(vector: Tensor) -> Tensor:
    """The bits of |x| as integers (n,), which order like |x|; refuses what is not finite."""
    if vector.dtype not in _BITS:
        raise TypeError(f"top-k takes float32 or float64, got {vector.dtype}")
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"top-k takes a flat vector with entries, got shape {tuple(vector.shape)}")
    integer, infinity = _BITS[vector.dtype]
    magnitudes = vector.detach().contiguous().view(integer) & torch.iinfo(integer).max
    if magnitudes.max() >= infinity:
        bad = (magnitudes >= infinity).nonzero()
        raise ValueError(f"{len(bad)} of {len(vector)} entries are not finite, the first at index {int(bad[0])}")
    return magnitudes


def _select(magnitudes: Tensor, k: int) -> Tensor:
    """Increasing indices (k,) of the k largest magnitudes (n,), ties to the lowest index."""
    if not 1 <= k <= len(magnitudes):
        raise ValueError(f"top-k of {len(magnitudes)} entries takes k from 1 to {len(magnitudes)}, got {k}")
    if magnitudes.device.type != "cpu":
        return _select_on_device(magnitudes, k)
    array = magnitudes.numpy()
    threshold = _kth_largest(array, k)
    taken = array >= threshold
    surplus = np.count_nonzero(taken) - k
    if surplus:  # more entries equal the threshold than fit: from the first that does not, only larger ones stay
        cut = np.flatnonzero(array == threshold)[-surplus]
        taken[cut:] = array[cut:] > threshold
    return torch.from_numpy(np.flatnonzero(taken))


def _select_on_device(magnitudes: Tensor, k: int) -> Tensor:
    """As `_select`, in operations that a GPU is good at."""
    threshold = torch.topk(magnitudes, k, sorted=False).values.min()
    above, ties = magnitudes > threshold, magnitudes == threshold
    taken = above | (ties & (ties.cumsum(0) <= k - above.sum()))
    return taken.nonzero().squeeze(1)


def _kth_largest(magnitudes: np.ndarray, k: int, sample_size: int = 4096) -> int:
    """The k-th largest of n integers, exactly, k in [1, n].

    A sorted sample brackets the answer, so that only the few per cent between the brackets are partitioned. A bracket
    that is itself the answer (many equal values) needs no partition at all; brackets that miss cost a full one.
    """
    n = len(magnitudes)
    sample = np.sort(magnitudes[:: n // sample_size | 1])  # an odd step keeps out of step with matrices' rows
    share = k / n
    centre = len(sample) * (1 - share)
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 4  # four standard deviations
    below, above = int(centre - margin), int(centre + margin)
    low = sample[below] if below >= 0 else -1
    high = sample[above] if above < len(sample) else np.iinfo(magnitudes.dtype).max
    above_low, from_high = np.count_nonzero(magnitudes > low), np.count_nonzero(magnitudes >= high)
    if from_high < k <= above_low:
        between = magnitudes[(magnitudes > low) & (magnitudes < high)]
        return int(np.partition(between, above_low - k)[above_low - k])
    if above_low < k <= np.count_nonzero(magnitudes >= low):
        return int(low)
    if np.count_nonzero(magnitudes > high) < k <= from_high:
        return int(high)
    return int(np.partition(magnitudes, n - k)[n - k])


def as_fraction(density: float) -> str:
    """Writes a density as people say it: 0.25 as 1/4, 0.3 as 0.3."""
    whole = round(1 / density)
    return f"1/{whole}" if whole > 1 and math.isclose(density * whole, 1) else f"{density:g}"
