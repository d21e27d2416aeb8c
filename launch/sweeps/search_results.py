"""What a search came to: the order of its trials as a CSV, the best so far against accumulated upload as a figure."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch.reports.canvas import COLOURS, LINES, MARKERS, byte_unit, canvas, factor, is_fraction, log_axis
from launch.sweeps.flasc_search import Standing
from launch.sweeps.search_space import Configuration
from launch.sweeps.trials import Measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    *("search", "order", "method", "lora_rank", "density", "seeds", "rounds", "validation", "validation_low"),
    *("validation_high", "test", "upload_bytes", "accumulated_upload_bytes", "best_so_far", "chosen"),
)

SEARCH = "flasc_search"
LABELS = {
    SEARCH: "FLASC-Search",
    "rank_grid": "LoRA, ranks",
    "flasc_grid": "FLASC, grid",
    "sparse_adapter_grid": "SparseAdapter, grid",
    "adapter_lth_grid": "Adapter LTH, grid",
}
"""What the figure calls the search and the grids."""


@dataclass(frozen=True)
class Step:
    """One configuration that a search tried.

    Attributes:
        configuration: which.
        standing: how far it was run, and what it was worth.
        measure: the same in figures.
        accumulated_bytes: uploaded by it and all before it.
        best: the best until here.
    """

    configuration: Configuration
    standing: Standing
    measure: Measure
    accumulated_bytes: int
    best: "Step | None" = None

    @property
    def so_far(self) -> "Step":
        """The best until here, which may be this one."""
        return self.best or self


def steps_of(tried: Mapping[Configuration, Standing], measures: Mapping[Configuration, Measure]) -> list[Step]:
    """Accumulates what a search tried, in its order; of equals the one that uploaded less is the best."""
    steps: list[Step] = []
    for one, standing in tried.items():
        before = steps[-1].so_far if steps else None
        uploaded = measures[one].upload_bytes + (steps[-1].accumulated_bytes if steps else 0)
        step = Step(one, standing, measures[one], uploaded)
        if before is not None and _rank(before) >= _rank(step):
            step = Step(one, standing, measures[one], uploaded, before)
        steps.append(step)
    return steps


def _rank(step: Step) -> tuple[Standing, int]:
    return step.standing, -step.measure.upload_bytes


def saved_bytes(steps: Sequence[Step], rounds: int) -> int:
    """What those that were stopped would have uploaded besides, at the rate at which they did."""
    stopped = [step for step in steps if 0 < step.standing.rounds < rounds]
    return sum(round(step.measure.upload_bytes * (rounds / step.standing.rounds - 1)) for step in stopped)


def csv_text(searches: Mapping[str, Sequence[Step]], seeds: Sequence[int]) -> str:
    """Every search as rows, in the order of its trials; empty where a run failed."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, steps in searches.items():
        for order, step in enumerate(steps, 1):
            one, found = step.configuration, step.measure
            figures = (found.validation, found.low, found.high, found.test)
            values = ["" if value != value else value for value in figures]
            identity = (name, order, one.method, one.lora_rank, one.density, " ".join(map(str, seeds)))
            cost = (found.upload_bytes, step.accumulated_bytes)
            chosen = int(one == steps[-1].so_far.configuration)
            best = step.so_far.measure.validation
            writer.writerow([*identity, found.rounds, *values, *cost, "" if best != best else best, chosen])
    return stream.getvalue()


def describe(name: str, steps: Sequence[Step], metric: str) -> str:
    """What a search chose, with the spread over seeds, and what it cost, in a line."""
    best, found = steps[-1].so_far.configuration, steps[-1].so_far.measure
    form, unit = (".1f", " %") if is_fraction(metric) else (".4g", "")
    figures = (found.validation, found.low, found.high, found.test)
    validation, low, high, test = (f"{factor(metric) * value:{form}}" for value in figures)
    spread = f" ({low} to {high})" if found.low < found.high else ""
    spent, own = (f"{count / 1e6:.4g} MB" for count in (steps[-1].accumulated_bytes, found.upload_bytes))
    configurations = f"{len(steps)} configuration{'' if len(steps) == 1 else 's'}"
    return (
        f"{LABELS[name]}: {best}; {metric} {validation}{unit}{spread} on validation, {test}{unit} on test; "
        f"{configurations} tried, {spent} uploaded in all, {own} by this one"
    )


def draw_search(searches: Mapping[str, Sequence[Step]], metric: str) -> "Figure":
    """Draws the best so far on validation against what was uploaded until then, linear and logarithmic side by side."""
    unit, scale = byte_unit(max(steps[-1].accumulated_bytes for steps in searches.values()))
    with canvas(2, share=True) as (figure, panels):
        for panel, logarithmic in zip(panels, (False, True), strict=True):
            for index, (name, steps) in enumerate(searches.items()):
                panel.plot(
                    [step.accumulated_bytes / scale for step in steps],
                    [factor(metric) * step.so_far.measure.validation for step in steps],
                    label=LABELS[name],
                    drawstyle="steps-post",
                    color=COLOURS[index % len(COLOURS)],
                    linestyle=LINES[index % len(LINES)],
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=6,
                    markeredgecolor="white",
                    linewidth=2,
                )
            panel.grid(True, which="major")
            panel.set_xlabel(f"Uploaded by all configurations so far ({unit}{', log scale' if logarithmic else ''})")
        panels[0].set_xlim(left=0)
        log_axis(panels[1])
        panels[0].set_ylabel(f"Best {metric} so far, validation{' (%)' if is_fraction(metric) else ''}")
        handles, labels = panels[0].get_legend_handles_labels()
        columns = len(labels) if len(labels) <= 4 else 3  # five in a row are wider than the figure
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, handlelength=3.4)
    return figure
