"""The figure of a report: a metric against uploaded bytes, on a linear and on a logarithmic axis."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from launch.reports.curves import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow: told apart by colour-blind readers, and of different greys.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", (0, (6, 1.6)), (0, (3, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.2)))
WIDTH, HEIGHT, LEGEND_ROW = 11.0, 4.6, 0.25  # inches
LEGEND_CHARACTERS = 105
STYLE = {
    "font.size": 12,
    "axes.labelsize": 13,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "svg.hashsalt": "fedsim",
}


def is_fraction(metric: str) -> bool:
    """Whether a metric is an accuracy, measured from 0 to 1 and shown in percent."""
    return metric.split("/")[-1].endswith("accuracy")


def draw(bands: Mapping[str, Band], metric: str, target: float | None, seeds: Sequence[int]) -> "Figure":
    """Draws the metric against uploaded bytes, mean line and min-max band, linear and logarithmic side by side.

    Args:
        bands: what to draw, by label.
        metric: its name.
        target: where to draw the target line, or None.
        seeds: how many seeds each band has.

    Returns:
        A figure that belongs to no window and no global state.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    largest = max((float(band.upload_bytes.max()) for band in bands.values() if band.upload_bytes.size), default=0.0)
    unit, scale = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2 if largest > 0 else 1, sharey=True, squeeze=False)[0]
        for panel, logarithmic in zip(axes, (False, True), strict=False):
            _draw_panel(panel, bands, scale, 100.0 if is_fraction(metric) else 1.0, logarithmic)
            panel.set_xlabel(f"Uploaded by all clients ({unit}{', log scale' if logarithmic else ''})")
        if target is not None:
            _draw_target(axes, metric, target)
        axes[0].set_ylabel(_metric_title(metric))
        _legend(figure, axes[0], seeds)
    return figure


def render(figure: "Figure", kind: Literal["png", "svg"]) -> bytes:
    """Renders a figure of draw as PNG or SVG; equal figures give equal bytes."""
    import matplotlib

    stream = io.BytesIO()
    # Ticks are made while drawing, and the names inside an SVG too: both read the style once more.
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _draw_panel(panel: "Axes", bands: Mapping[str, Band], scale: float, factor: float, logarithmic: bool) -> None:
    for index, (label, band) in enumerate(bands.items()):
        keep = band.upload_bytes > 0 if logarithmic else np.ones(band.upload_bytes.shape, bool)
        upload, mean = band.upload_bytes[keep] / scale, factor * band.mean[keep]
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
        low, high = factor * band.low[keep], factor * band.high[keep]
        panel.fill_between(upload, low, high, color=colour, alpha=0.16, linewidth=0, zorder=order - 1)
        panel.plot(upload, mean, label=label, markevery=(0.05, 0.12), **style)
        # The end is where a run stops uploading, so it has a marker whatever the spacing of the others.
        panel.plot(upload[-1:], mean[-1:], **style)
    panel.grid(True, which="major")
    panel.tick_params(which="both", color="#444444")
    panel.tick_params(which="minor", length=2)
    if logarithmic:
        log_axis(panel)
    else:
        panel.set_xlim(left=0)


def log_axis(panel: "Axes") -> None:
    """Makes a panel's horizontal axis logarithmic, with as many labels as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    left, right = panel.get_xlim()
    decades = np.log10(right / left)
    subs = (1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    panel.xaxis.set_major_locator(LogLocator(subs=subs))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _draw_target(panels: Sequence["Axes"], metric: str, target: float) -> None:
    percent = is_fraction(metric)
    height = 100 * target if percent else target
    for panel in panels:
        panel.axhline(height, color="#555555", linewidth=1.2, linestyle=(0, (1, 2)), zorder=2)
    # Outside the axes no curve can run through the words.
    text = f"target\n{height:g}{' %' if percent else ''}"
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    panels[-1].annotate(text, (1, height), (5, 0), va="center", color="#444444", annotation_clip=False, **place)


def _metric_title(metric: str) -> str:
    title = metric[0].upper() + metric[1:] if "/" not in metric else metric
    return f"{title} (%)" if is_fraction(metric) else title


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
