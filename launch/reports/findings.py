"""What finished runs say about one metric: read, grouped and summed up, before anything is drawn or written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.errors import ConfigurationError, unknown_name
from launch.reports.canvas import is_fraction
from launch.reports.curves import Band, Curve, group_runs
from launch.reports.results import RunResult, find_runs, read_run
from launch.reports.rows import Row, row_of
from launch.reports.significance import Significance, compare

Target = tuple[str, float]


@dataclass(frozen=True, eq=False)
class Findings:
    """A report without its form.

    Attributes:
        metric: what is reported.
        goal: the value of the target, or None.
        higher: whether more of the metric is better.
        budget_bytes: uploads at which the metric is told, or None.
        curves: the runs, the seeds of a configuration together, the largest upload first.
        bands: the metric of each curve that has a finite value, by label.
        rows: a line of the table for each curve.
        significance: each curve against the best, or None where nothing can be compared.
        notes: what was left out, and why.
    """

    metric: str
    goal: float | None
    higher: bool
    budget_bytes: float | None
    curves: Sequence[Curve]
    bands: Mapping[str, Band]
    rows: Sequence[Row]
    significance: Significance | None
    notes: Sequence[str]


def parse_target(text: str) -> Target:
    """Reads a target, NAME=VALUE.

    Raises:
        ConfigurationError: it is not of that form, or an accuracy is not a fraction.
    """
    name, equals, number = text.partition("=")
    name = name.strip()
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not equals or not name or not np.isfinite(value):
        raise ConfigurationError(f"--target is {text!r}, expected NAME=VALUE with a number, as in accuracy=0.8")
    if is_fraction(name) and not 0 <= value <= 1:
        hint = f"; did you mean {name}={value / 100:g}?" if 1 < value <= 100 else ""
        raise ConfigurationError(f"--target is {text!r}, expected {name} as a fraction from 0 to 1{hint}")
    return name, value


def gather(paths: Sequence[Path], target: Target | None, budget_bytes: float | None) -> Findings:
    """Reads finished runs and sums them up.

    Args:
        paths: run directories, or directories that hold some up to two levels down.
        target: a metric and the value to reach, or None for the main metric without a target.
        budget_bytes: uploads of a run; the rows then tell the metric when they are spent.

    Raises:
        ConfigurationError: a path, a run directory or the target is at fault.
    """
    finished, unfinished = find_runs(paths)
    notes = [f"left out, not finished: {path}" for path in unfinished]
    runs = [read_run(path) for path in finished]
    metric = _metric(runs, target)
    notes += [f"left out, no {metric}: {run.path}" for run in runs if metric not in run.metrics]
    curves, left_out = group_runs([run for run in runs if metric in run.metrics])
    notes += left_out
    bands = {curve.label: curve.band(metric) for curve in curves}
    notes += [f"not drawn, no finite {metric}: {label}" for label, band in bands.items() if not band.mean.size]
    goal = target[1] if target else None
    higher = _higher_is_better(curves, metric)
    rows = [row_of(curve, metric, goal, higher, budget_bytes) for curve in curves]
    return Findings(
        metric=metric,
        goal=goal,
        higher=higher,
        budget_bytes=budget_bytes,
        curves=curves,
        bands={label: band for label, band in bands.items() if band.mean.size},
        rows=rows,
        significance=compare({row.label: row.finals for row in rows}, higher),
        notes=notes,
    )


def _metric(runs: Sequence[RunResult], target: Target | None) -> str:
    """The metric of the report: the target's, else accuracy, else the first main metric that all runs have."""
    if target:
        known = {metric for run in runs for metric in run.metrics}
        if target[0] not in known:
            raise unknown_name("metric", target[0], known)
        return target[0]
    common = set.intersection(*(set(run.metrics) for run in runs))
    for metric in ("accuracy", *runs[0].main_metrics):
        if metric in common:
            return metric
    odd = next((run for run in runs if not set(run.metrics) & set(runs[0].metrics)), runs[-1])
    raise ConfigurationError(
        f"no metric in common: {runs[0].path} has {', '.join(runs[0].metrics)}, {odd.path} has "
        f"{', '.join(odd.metrics)}; report them apart, or name one with --target"
    )


def _higher_is_better(curves: Sequence[Curve], metric: str) -> bool:
    """Which way is better; a metric of another view (full/accuracy) goes as the main view's where not said."""
    for run in (run for curve in curves for run in curve.runs):
        for name in (metric, metric.split("/")[-1]):
            if name in run.higher_is_better:
                return run.higher_is_better[name]
    raise ConfigurationError(
        f"{curves[0].runs[0].path}/summary.json: higher_is_better does not say which way {metric} is"
    )
