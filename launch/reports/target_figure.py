"""The bars of a report: how many bytes each run needs to its target. FLASC, Figure 4."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from launch.reports.canvas import COLOURS, byte_unit, canvas
from launch.reports.rows import Row, Spread
from launch.reports.table import megabytes, share_reached, target_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR, LINE, MARGIN = 0.36, 0.19, 1.3  # inches: a bar with its gap, a line of its label, and what stands above and below
LABEL = 36  # characters
TITLES = ("Uploaded by all clients", "Downloaded by all clients")


def draw_target(rows: Sequence[Row], metric: str, goal: float) -> "Figure":
    """Draws bytes to the target as bars, uploads and downloads side by side.

    A bar is the mean over seeds with a line from the smallest to the largest; a run of which not every seed reaches the
    target has words in place of a bar, as a mean over the others would make it look cheap.

    Args:
        rows: of the table, first on top.
        metric: by name.
        goal: the value of the metric to reach.

    Returns:
        A figure that belongs to no window and no global state.
    """
    labels = [fill(row.label, LABEL) for row in rows]
    lines = max(label.count("\n") + 1 for label in labels)
    with canvas(2, MARGIN + max(BAR, LINE * (lines + 0.5)) * len(rows), share=True) as (figure, panels):
        figure.suptitle(f"Bytes to {metric} {target_title(metric, goal)}", fontsize=13)
        for panel, title, needs in zip(
            panels, TITLES, ([row.to_target for row in rows], [row.download_to_target for row in rows]), strict=True
        ):
            _draw_bars(panel, rows, needs, title)
        panels[0].set_yticks(range(len(rows)), labels, fontsize=11)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _draw_bars(panel: "Axes", rows: Sequence[Row], needs: Sequence[Spread | None], title: str) -> None:
    largest = max((need.high for need in needs if need), default=0.0)
    unit, scale = byte_unit(largest)
    for index, (row, need) in enumerate(zip(rows, needs, strict=True)):
        if need is None:
            text, end = share_reached(row), 0.0
        else:
            text, end = megabytes(need.mean, scale), need.high / scale
            panel.barh(index, need.mean / scale, 0.7, color=COLOURS[index % len(COLOURS)])
            if need.low < need.high:
                panel.hlines(index, need.low / scale, end, color="#8c8c8c", linewidth=2.5)
        style = {"color": "#444444", "fontsize": 11, "va": "center"}
        panel.annotate(text, (end, index), (5, 0), textcoords="offset points", **style)  # type: ignore[arg-type]
    # Words stand behind the longest bar, too.
    panel.set_xlim(0, 1.25 * largest / scale if largest else 1)
    panel.set_xlabel(f"{title} ({unit})")
    panel.grid(True, axis="x")
    panel.tick_params(color="#444444")
    panel.tick_params(axis="y", length=0)
