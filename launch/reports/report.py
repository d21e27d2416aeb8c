"""`fedsim report`: finished runs as one table and one figure, how good the model got for the bytes uploaded."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsim.errors import ConfigurationError, unknown_name
from launch.reports.curves import Curve, group_runs
from launch.reports.figures import draw, is_fraction, render
from launch.reports.results import RunResult, find_runs, read_run
from launch.reports.table import MEANING, csv_text, markdown, row_of, table_cells

Target = tuple[str, float]


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


def report(
    paths: Sequence[Path], target: Target | None, out: Path | None, console: Console, budget_bytes: float | None = None
) -> Path:
    """Tabulates and draws finished runs; writes report.png, report.svg, report.md and report.csv.

    Args:
        paths: run directories, or directories that hold some up to two levels down.
        target: a metric and the value to reach, or None for the main metric without a target.
        out: the folder to write to, made when missing; None for the common parent of the paths.
        console: where the table is printed.
        budget_bytes: uploads of a run; the table then tells the metric when they are spent.

    Returns:
        The folder written to; a former report there is overwritten.

    Raises:
        ConfigurationError: a path, a run directory or the target is at fault; nothing is written.
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

    folder = out if out is not None else _common_parent(paths)
    drawn = {label: band for label, band in bands.items() if band.mean.size}
    figure = draw(drawn, metric, goal, [len(curve.runs) for curve in curves])
    cells = table_cells(rows, metric, goal, budget_bytes)
    contents = {
        "report.png": render(figure, "png"),
        "report.svg": render(figure, "svg"),
        "report.md": markdown(cells, metric, notes).encode(),
        "report.csv": csv_text(rows, metric, goal, budget_bytes).encode(),
    }
    write_files(folder, contents)
    _print(console, cells, notes, folder, contents)
    return folder


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


def _common_parent(paths: Sequence[Path]) -> Path:
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in paths]
    return Path(os.path.commonpath(folders))


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Writes all files under temporary names first, so that a full disk leaves the former report whole.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    temporary = {name: folder / f".{name}.{os.getpid()}.part" for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            temporary[name].write_bytes(content)
        for name in contents:
            os.replace(temporary[name], folder / name)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {folder} ({error.strerror}); give another folder, --out DIR"
        ) from error
    finally:
        for path in temporary.values():
            if path.exists():
                path.unlink()


def _print(
    console: Console, cells: Sequence[Sequence[str]], notes: Iterable[str], folder: Path, names: Iterable[str]
) -> None:
    header, *body = cells
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    longest = max(len(row[0]) for row in body)
    table.add_column(header[0], no_wrap=longest <= 24, overflow="fold")
    for title in header[1:]:
        table.add_column(escape(_stacked(title).replace(" ", "\n", 1)), justify="right", overflow="fold")
    for label, *values in body:
        table.add_row(escape(label), *(escape(_stacked(value)) for value in values))
    console.print(table)
    console.print(MEANING, style="dim", highlight=False)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {folder}: {', '.join(names)}", markup=False, highlight=False, soft_wrap=True)


def _stacked(text: str) -> str:
    """Puts what is in brackets on a line of its own, two if long, so that a terminal of 80 columns holds the table."""
    before, bracket, inside = text.partition(" (")
    if len(inside) > 10:
        inside = inside.replace("–", "–\n")
    return f"{before}\n({inside}" if bracket else text
