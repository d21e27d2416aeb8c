"""What all figures of reports share: style, colours, sizes, panels, units, and how they become PNG and SVG."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow: told apart by colour-blind readers, and of different greys.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", (0, (6, 1.6)), (0, (3, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.2)))
WIDTH, HEIGHT, LEGEND_ROW = 11.0, 4.6, 0.25  # inches
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
    "text.parse_math": False,  # a dollar in a name is a dollar
}


def is_fraction(metric: str) -> bool:
    """Whether a metric is an accuracy, measured from 0 to 1 and shown in percent."""
    return metric.split("/")[-1].endswith("accuracy")


@contextmanager
def canvas(columns: int, height: float = HEIGHT, *, share: bool = False) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Gives panels side by side to draw on, in the style of all figures.

    Args:
        columns: how many panels.
        height: of the figure, inches.
        share: whether the panels share their vertical axis.

    Yields:
        A figure that belongs to no window and no global state, and its panels.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, list(figure.subplots(1, columns, sharey=share, squeeze=False)[0])


def byte_unit(largest: float) -> tuple[str, float]:
    """The unit in which bytes up to the largest are drawn, and how many bytes it is."""
    return ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)


def factor(metric: str) -> float:
    """What values of the metric are multiplied by to be drawn."""
    return 100.0 if is_fraction(metric) else 1.0


def metric_title(metric: str) -> str:
    """What an axis of the metric is called."""
    title = metric[0].upper() + metric[1:] if "/" not in metric else metric
    return f"{title} (%)" if is_fraction(metric) else title


def render(figure: "Figure", kind: Literal["png", "svg"]) -> bytes:
    """Renders a figure as PNG or SVG; equal figures give equal bytes."""
    import matplotlib

    stream = io.BytesIO()
    # Ticks are made while drawing, and the names inside an SVG too: both read the style once more.
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


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
