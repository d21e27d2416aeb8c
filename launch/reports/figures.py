"""The figure of a report: a metric against bytes, on a linear and on a logarithmic axis, or against rounds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.reports.against import AGAINST
from launch.reports.canvas import (
    COLOURS,
    HEIGHT,
    LEGEND_ROW,
    LINES,
    MARKERS,
    byte_unit,
    canvas,
    factor,
    is_fraction,
    log_axis,
    metric_title,
)
from launch.reports.curves import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_CHARACTERS = 105


def draw(
    bands: Mapping[str, Band], metric: str, target: float | None, seeds: Sequence[int], against: str = "upload"
) -> "Figure":
    """Draws the metric, mean line and min-max band; bytes on a linear and a logarithmic axis side by side.

    Args:
        bands: what to draw, by label.
        metric: its name.
        target: where to draw the target line, or None.
        seeds: how many seeds each band has.
        against: what the horizontal axis is, one of AGAINST.

    Returns:
        A figure that belongs to no window and no global state.
    """
    axis = AGAINST[against]
    largest = max((float(axis.of(band).max()) for band in bands.values() if band.mean.size), default=0.0)
    unit, scale = byte_unit(largest) if axis.in_bytes else ("", 1.0)
    with canvas(2 if axis.in_bytes and largest > 0 else 1, share=True) as (figure, panels):
        for panel, logarithmic in zip(panels, (False, True), strict=False):
            points = {label: (axis.of(band) / scale, band) for label, band in bands.items()}
            _draw_panel(panel, points, factor(metric), logarithmic)
            panel.set_xlabel(axis.title + (f" ({unit}{', log scale' if logarithmic else ''})" if unit else ""))
        if target is not None:
            _draw_target(panels, metric, target)
        panels[0].set_ylabel(metric_title(metric))
        _legend(figure, panels[0], seeds)
    return figure


def _draw_panel(panel: "Axes", points: Mapping[str, tuple[np.ndarray, Band]], times: float, logarithmic: bool) -> None:
    for index, (label, (along, band)) in enumerate(points.items()):
        keep = along > 0 if logarithmic else np.ones(along.shape, bool)
        across, mean = along[keep], times * band.mean[keep]
        colour, order = COLOURS[index % len(COLOURS)], 3 + 0.01 * index
        style: dict[str, Any] = {
            "color": colour,
            "zorder": order,
            "linestyle": LINES[index % len(LINES)],
            "linewidth": 2.0,
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 7,
            "markeredgecolor": "white",
            "markeredgewidth": 0.8,
        }
        low, high = times * band.low[keep], times * band.high[keep]
        panel.fill_between(across, low, high, color=colour, alpha=0.16, linewidth=0, zorder=order - 1)
        panel.plot(across, mean, label=label, markevery=(0.05, 0.12), **style)
        # The end is where a run stops uploading, so it has a marker whatever the spacing of the others.
        panel.plot(across[-1:], mean[-1:], **style)
    panel.grid(True, which="major")
    panel.tick_params(which="both", color="#444444")
    panel.tick_params(which="minor", length=2)
    if logarithmic:
        log_axis(panel)
    else:
        panel.set_xlim(left=0)


def _draw_target(panels: Sequence["Axes"], metric: str, target: float) -> None:
    percent = is_fraction(metric)
    height = 100 * target if percent else target
    for panel in panels:
        panel.axhline(height, color="#555555", linewidth=1.2, linestyle=(0, (1, 2)), zorder=2)
    # Outside the axes no curve can run through the words.
    text = f"target\n{height:g}{' %' if percent else ''}"
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    panels[-1].annotate(text, (1, height), (5, 0), va="center", color="#444444", annotation_clip=False, **place)


def _legend(figure: "Figure", panel: "Axes", seeds: Sequence[int]) -> None:
    handles, labels = panel.get_legend_handles_labels()
    widest = max(map(len, labels), default=1)
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // (widest + 7)))
    figure.set_figheight(HEIGHT + LEGEND_ROW * ((len(labels) - 1) // columns))
    place: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "frameon": False, "handlelength": 3.4}
    if max(seeds, default=1) > 1:
        several = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else str(max(seeds))
        place["title"] = f"line: mean over {several} seeds, band: smallest to largest"
    legend = figure.legend(handles, labels, **place)
    legend.get_title().set(fontsize=11, color="#555555")
