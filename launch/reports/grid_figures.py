"""The figures of a grid: its heat map, and the Pareto front of metric against upload. FLASC, Figure 6."""

from typing import TYPE_CHECKING, Any

import numpy as np

from launch.reports.canvas import (
    COLOURS,
    HEIGHT,
    LEGEND_ROW,
    LINES,
    MARKERS,
    byte_unit,
    canvas,
    factor,
    log_axis,
    metric_title,
)
from launch.reports.grid import Grid
from launch.reports.table import megabytes, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, MARGIN = 0.62, 1.5  # inches: of a cell, and of what stands above and below
MOST_WORDS = 16
"""Points of a front beside which there is room for words."""
ABSENT, OUTLINE, FRONT = "#eeeeee", "#D55E00", "#b5b5b5"


def draw_heat_map(grid: Grid, metric: str, higher: bool) -> "Figure":
    """Draws the final metric, mean over seeds, as a colour for each cell, with the upload beneath its value.

    Args:
        grid: what to draw.
        metric: by name.
        higher: whether more of it is better; better is brighter.

    Returns:
        A figure that belongs to no window and no global state.
    """
    values = np.full((len(grid.up), len(grid.across)), np.nan)  # rows up, columns across
    for (across, up), row in grid.cells.items():
        values[grid.up.index(up), grid.across.index(across)] = factor(metric) * row.final.mean
    unit, scale = byte_unit(max(row.upload_bytes for row in grid.cells.values()))
    with canvas(1, MARGIN + ROW * len(grid.up)) as (figure, (panel,)):
        panel.set_facecolor(ABSENT)
        edges = [np.arange(count + 1) - 0.5 for count in (len(grid.across), len(grid.up))]
        style: dict[str, Any] = {"cmap": "cividis" if higher else "cividis_r", "edgecolors": "white", "linewidth": 1.5}
        mesh = panel.pcolormesh(*edges, np.ma.masked_invalid(values), **style)
        bar = figure.colorbar(mesh, ax=panel, pad=0.015)
        bar.set_label(f"Final {metric_title(metric).lower()}")
        bar.outline.set_visible(False)
        size = min(11.0, 110 / len(grid.across))  # points; what fits into a cell
        for at, row in grid.cells.items():
            place = grid.across.index(at[0]), grid.up.index(at[1])
            bright = sum(mesh.cmap(mesh.norm(values[place[::-1]]))[:3]) > 1.5
            text = f"{value_text(row.final.mean, metric)}\n{megabytes(row.upload_bytes, scale)} {unit}"
            panel.text(*place, text, ha="center", va="center", fontsize=size, color="black" if bright else "white")
        _outline(panel, grid)
        panel.set_xticks(range(len(grid.across)), [f"{value:g}" for value in grid.across])
        panel.set_yticks(range(len(grid.up)), [f"{value:g}" for value in grid.up])
        panel.set_xlabel(grid.keys[0])
        panel.set_ylabel(grid.keys[1])
        panel.tick_params(length=0)
        figure.suptitle(f"Final {metric} and upload; outlined: the Pareto front of both", fontsize=12, color="#444444")
    return figure


def _outline(panel: "Axes", grid: Grid) -> None:
    from matplotlib.patches import Rectangle

    width = min(2.5, 25 / len(grid.across))
    for across, up in sorted(grid.front):
        corner = grid.across.index(across) - 0.47, grid.up.index(up) - 0.46
        panel.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=OUTLINE, linewidth=width))


def draw_pareto(grid: Grid, metric: str, higher: bool) -> "Figure":
    """Draws the final metric against upload: a line for each value of the first key, and the front beneath them all.

    Args:
        grid: what to draw.
        metric: by name.
        higher: whether more of it is better; the words stand on the side of what nobody reaches.

    Returns:
        A figure that belongs to no window and no global state.
    """
    uploads = [row.upload_bytes for row in grid.cells.values()]
    unit, scale = byte_unit(max(uploads))
    with canvas(1, max(HEIGHT, MARGIN + LEGEND_ROW * len(grid.across))) as (figure, (panel,)):
        for index, across in enumerate(grid.across):
            _draw_line(panel, grid, across, (scale, factor(metric)), index)
        _draw_front(panel, grid, (scale, factor(metric)), higher)
        panel.grid(True, which="major")
        panel.margins(x=0.09)  # room for the words of the first point
        if min(uploads) > 0:
            log_axis(panel)
        panel.set_xlabel(f"Uploaded by all clients ({unit}{', log scale' if min(uploads) > 0 else ''})")
        panel.set_ylabel(f"Final {metric_title(metric).lower()}")
        legend = figure.legend(loc="outside right center", frameon=False, handlelength=3.4)
        words = f";\nnumbers at the front:\n{grid.keys[1]}" if len(grid.front) <= MOST_WORDS else ""
        legend.set_title(grid.keys[0] + words)
        legend.get_title().set(fontsize=10)
    return figure


def _draw_front(panel: "Axes", grid: Grid, scales: tuple[float, float], higher: bool) -> None:
    """The best for each upload, as steps beneath the lines, with the second key's values beside its points."""
    from matplotlib.patheffects import withStroke

    best = sorted(
        (grid.cells[at].upload_bytes / scales[0], scales[1] * grid.cells[at].final.mean, at) for at in grid.front
    )
    steps = [[point[axis] for point in best] for axis in (0, 1)]
    panel.plot(*steps, label="Pareto front", color=FRONT, linewidth=6, alpha=0.6, drawstyle="steps-post", zorder=1)
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "bottom" if higher else "top"}
    for upload, value, at in best if len(best) <= MOST_WORDS else ():
        text = panel.annotate(f"{at[1]:g}", (upload, value), (-5, 4 if higher else -4), zorder=5, **place)
        text.set(fontsize=10, color="#222222", path_effects=[withStroke(linewidth=3, foreground="white")])


def _draw_line(panel: "Axes", grid: Grid, across: float, scales: tuple[float, float], index: int) -> None:
    """One value of the first key, over rising upload, with a thin line from the smallest to the largest seed."""
    rows = sorted((row for at, row in grid.cells.items() if at[0] == across), key=lambda row: row.upload_bytes)
    uploads = np.array([row.upload_bytes for row in rows]) / scales[0]
    spreads = [(row.final.mean, row.final.low, row.final.high) for row in rows]
    mean, low, high = (scales[1] * np.array(part) for part in zip(*spreads, strict=True))
    colour = COLOURS[index % len(COLOURS)]
    panel.vlines(uploads, low, high, color=colour, linewidth=1, alpha=0.5)
    panel.plot(
        uploads,
        mean,
        label=f"{across:g}",
        color=colour,
        linestyle=LINES[index % len(LINES)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=7,
        markeredgecolor="white",
        linewidth=1.5,
    )
