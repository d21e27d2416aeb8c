"""The lines of a report's table: what each curve reached and what it cost, as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from launch.reports.curves import Curve
from launch.reports.results import RunResult


@dataclass(frozen=True)
class Spread:
    """A value over the seeds of a curve; all NaN where a seed has none."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Mean, least and largest."""
        return cls(float(np.mean(values)), float(np.min(values)), float(np.max(values)))


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        label: of the curve.
        seeds: rising.
        final: the metric at the last round.
        finals: the same, of each run.
        best: the metric at the best evaluation of each seed.
        upload_bytes: total of a run, mean over seeds.
        download_bytes: total of a run, mean over seeds.
        to_target: upload bytes until the target is first reached; None where not every seed does.
        download_to_target: download bytes until then.
        reached: how many seeds reach the target.
        within_budget: the metric at the last evaluation within the upload budget; None without one.
    """

    label: str
    seeds: tuple[int, ...]
    final: Spread
    finals: tuple[float, ...]
    best: Spread
    upload_bytes: float
    download_bytes: float
    to_target: Spread | None
    download_to_target: Spread | None
    reached: int
    within_budget: Spread | None


def row_of(curve: Curve, metric: str, goal: float | None, higher: bool, budget_bytes: float | None) -> Row:
    """Sums up a curve.

    Args:
        curve: the runs of one label.
        metric: by name.
        goal: a value of the metric; when every seed first reaches it is told in bytes.
        higher: whether more of the metric is better.
        budget_bytes: uploads; what the metric is when they are spent is told.
    """
    finals = [float(run.metrics[metric][-1]) for run in curve.runs]
    best = np.fmax.reduce if higher else np.fmin.reduce  # both pass over NaN, without the warning of nanmax
    bests = [float(best(run.metrics[metric])) for run in curve.runs]
    reached = [] if goal is None else [_bytes_to(run, metric, goal, higher) for run in curve.runs]
    there = [sent for sent in reached if sent is not None]
    everyone = len(there) == len(curve.runs)
    return Row(
        label=curve.label,
        seeds=curve.seeds,
        final=Spread.of(finals),
        finals=tuple(finals),
        best=Spread.of(bests),
        upload_bytes=curve.upload_bytes,
        download_bytes=curve.download_bytes,
        to_target=Spread.of([up for up, _ in there]) if everyone else None,
        download_to_target=Spread.of([down for _, down in there]) if everyone else None,
        reached=len(there),
        within_budget=None
        if budget_bytes is None
        else Spread.of([_within(run, metric, budget_bytes) for run in curve.runs]),
    )


def _within(run: RunResult, metric: str, budget_bytes: float) -> float:
    """The metric at the last evaluation before the uploads go over the budget."""
    return float(run.metrics[metric][run.upload_bytes <= budget_bytes][-1])


def _bytes_to(run: RunResult, metric: str, goal: float, higher: bool) -> tuple[int, int] | None:
    """Bytes up and down until the goal is first reached, or None."""
    values = run.metrics[metric]
    reached = np.flatnonzero(values >= goal if higher else values <= goal)
    return (int(run.upload_bytes[reached[0]]), int(run.download_bytes[reached[0]])) if reached.size else None
