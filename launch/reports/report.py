"""`fedsim report`: finished runs as tables and figures, how good the model got for the bytes that were sent."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.reports.against import AGAINST
from launch.reports.canvas import render
from launch.reports.curves_table import curves_csv
from launch.reports.figures import draw
from launch.reports.files import write_files
from launch.reports.findings import Findings, Target, gather
from launch.reports.grid import Grid, Keys, grid_csv, grid_of
from launch.reports.grid_figures import draw_heat_map, draw_pareto
from launch.reports.latex import latex
from launch.reports.page import page
from launch.reports.table import csv_text, markdown, meaning, table_cells, target_title
from launch.reports.target_figure import draw_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: tuple[Literal["png", "svg"], ...] = ("png", "svg")


@dataclass(frozen=True)
class Options:
    """What a report holds besides its target.

    Attributes:
        budget_bytes: uploads of a run; the table then tells the metric when they are spent.
        against: what the curves are drawn against, one of AGAINST.
        heat_map: two numeric settings; the final metric is drawn over both.
        html: whether a page holds it all, too.
    """

    budget_bytes: float | None = None
    against: str = "upload"
    heat_map: Keys | None = None
    html: bool = False


def report(
    paths: Sequence[Path], target: Target | None, out: Path | None, console: Console, options: Options | None = None
) -> Path:
    """Tabulates and draws finished runs.

    Args:
        paths: run directories, or directories that hold some up to two levels down.
        target: a metric and the value to reach, or None for the main metric without a target.
        out: the folder to write to, made when missing; None for the common parent of the paths.
        console: where the table is printed.
        options: what else the report holds.

    Returns:
        The folder written to; files of a former report there are overwritten.

    Raises:
        ConfigurationError: a path, a run directory, the target or the heat map is at fault; nothing is written.
    """
    options = options or Options()
    found = gather(paths, target, options.budget_bytes)
    folder = out if out is not None else _common_parent(paths)
    grid = grid_of(found, options.heat_map) if options.heat_map else None
    found = replace(found, notes=[*found.notes, *(grid.notes if grid else ())])
    contents = _contents(found, options, grid)
    write_files(folder, contents)
    _print(console, found, folder, contents)
    return folder


def _contents(found: Findings, options: Options, grid: Grid | None) -> dict[str, bytes]:
    """The files by name."""
    figures = _figures(found, options.against, grid)
    contents = {f"{name}.{kind}": render(figure, kind) for name, (figure, _) in figures.items() for kind in KINDS}
    texts = {
        "report.md": markdown(found, {f"{name}.png": words for name, (_, words) in figures.items()}),
        "report.tex": latex(found),
        "report.csv": csv_text(found),
        "report_curves.csv": curves_csv(found.curves, found.bands, found.metric),
    }
    if grid:
        texts["report_heat_map.csv"] = grid_csv(grid, found.metric)
    if options.html:
        drawings = {name: (contents[f"{name}.svg"], words) for name, (_, words) in figures.items()}
        texts["report.html"] = page(found, drawings)
    return contents | {name: text.encode() for name, text in texts.items()}


def _figures(found: Findings, against: str, grid: Grid | None) -> dict[str, tuple["Figure", str]]:
    """The figures by name, each with what it shows in words."""
    seeds = [len(curve.runs) for curve in found.curves]
    curves = draw(found.bands, found.metric, found.goal, seeds, against)
    figures = {"report": (curves, f"{found.metric} against {AGAINST[against].words}")}
    if found.goal is not None:
        bars = draw_target(found.rows, found.metric, found.goal)
        figures["report_target"] = (bars, f"bytes to {found.metric} {target_title(found.metric, found.goal)}")
    if grid:
        keys = " and ".join(grid.keys)
        heat_map = draw_heat_map(grid, found.metric, found.higher)
        figures["report_heat_map"] = (heat_map, f"final {found.metric} by {keys}")
        pareto = draw_pareto(grid, found.metric, found.higher)
        figures["report_pareto"] = (pareto, f"final {found.metric} against uploaded bytes, and its Pareto front")
    return figures


def _common_parent(paths: Sequence[Path]) -> Path:
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in paths]
    return Path(os.path.commonpath(folders))


def _print(console: Console, found: Findings, folder: Path, names: Iterable[str]) -> None:
    header, *body = table_cells(found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    longest = max(len(row[0]) for row in body)
    table.add_column(header[0], no_wrap=longest <= 24, overflow="fold")
    for title in header[1:]:
        table.add_column(escape(_stacked(title).replace(" ", "\n", 1)), justify="right", overflow="fold")
    for label, *values in body:
        table.add_row(escape(label), *(escape(_stacked(value)) for value in values))
    console.print(table)
    for sentence in meaning(found):
        console.print(sentence, style="dim", markup=False, highlight=False)
    for note in found.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {folder}: {', '.join(names)}", markup=False, highlight=False, soft_wrap=True)


def _stacked(text: str) -> str:
    """Puts what is in brackets on a line of its own, two if long, so that a terminal of 80 columns holds the table."""
    before, bracket, inside = text.partition(" (")
    if len(inside) > 10:
        inside = inside.replace("–", "–\n")
    return f"{before}\n({inside}" if bracket else text
