"""Whether final values over seeds tell curves apart: each against the best, by Welch's t-test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 2
"""Seeds that a variance needs."""


@dataclass(frozen=True)
class Significance:
    """Each curve that can be compared against the one with the best mean.

    Attributes:
        reference: the label of the best.
        p_values: by label, two-sided, not corrected for how many they are.
        seeds: the fewest that a compared curve has.
    """

    reference: str
    p_values: Mapping[str, float]
    seeds: int

    def meaning(self, metric: str) -> str:
        """What a p value is, and how little it proves."""
        count = len(self.p_values)
        several = "" if count == 1 else f", not corrected for {count} comparisons"
        return (
            f"p: Welch's t-test (two-sided) of the final {metric} against {self.reference}, the best mean{several}. "
            f"Few seeds prove little (here {self.seeds}): a large p does not show that runs are equal, and as the best "
            "was picked by these very values, p is rather too small."
        )


def compare(finals: Mapping[str, Sequence[float]], higher: bool) -> Significance | None:
    """Compares final values over seeds.

    Args:
        finals: of each run of a curve, by label.
        higher: whether more is better.

    Returns:
        None where fewer than two curves have two seeds or more, all finite, and a variance between them.
    """
    able = {label: values for label, values in finals.items() if len(values) >= FEWEST and np.isfinite(values).all()}
    if len(able) < 2:
        return None
    sign = 1 if higher else -1
    reference = max(able, key=lambda label: sign * float(np.mean(able[label])))
    best = able.pop(reference)
    # Two curves that do not vary at all leave nothing to measure a difference by.
    varying = {label: values for label, values in able.items() if np.ptp(values) > 0 or np.ptp(best) > 0}
    if not varying:
        return None
    p_values = {label: welch(best, values) for label, values in varying.items()}
    return Significance(reference, p_values, min(map(len, [best, *varying.values()])))


def welch(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p value of Welch's t-test: equal means, variances that may differ.

    Args:
        one: values, two or more.
        other: values, two or more; one of both varies.
    """
    from scipy import stats  # type: ignore[import-untyped]

    summaries = [figure for values in (one, other) for figure in (np.mean(values), np.std(values, ddof=1), len(values))]
    return float(stats.ttest_ind_from_stats(*summaries, equal_var=False).pvalue)
