"""The table of a report: what each curve reached and what it cost, as cells, Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from launch.reports.canvas import is_fraction
from launch.reports.curves import Curve
from launch.reports.results import RunResult

MEANING = "Mean over seeds (smallest–largest); bytes of all clients; 1 MB is 10^6 bytes."
CSV_COLUMNS = (
    *("label", "seeds", "metric", "final_mean", "final_min", "final_max", "best_mean", "best_min", "best_max"),
    *("upload_bytes", "target", "upload_bytes_to_target", "seeds_reached", "download_bytes"),
    *("budget_bytes", "budget_mean", "budget_min", "budget_max", "download_bytes_to_target"),
)


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


def table_cells(
    rows: Sequence[Row], metric: str, goal: float | None, budget_bytes: float | None = None
) -> list[list[str]]:
    """The table as text, header first."""
    unit = " (%)" if is_fraction(metric) else ""
    header = ["run", "seeds", f"final {metric}{unit}", f"best {metric}{unit}", "upload (MB)", "download (MB)"]
    table = [header]
    if goal is not None:
        header.insert(5, f"upload to {target_title(metric, goal)} (MB)")
    if budget_bytes is not None:
        header.insert(4, f"{metric} at {budget_bytes / 1e6:g} MB{unit}")
    for row in rows:
        cells = [row.label, str(len(row.seeds)), _spread(row.final, metric), _spread(row.best, metric)]
        cells += [megabytes(row.upload_bytes), megabytes(row.download_bytes)]
        if goal is not None:
            cells.insert(5, _to_target(row))
        if row.within_budget is not None:
            cells.insert(4, _spread(row.within_budget, metric))
        table.append(cells)
    return table


def target_title(metric: str, goal: float) -> str:
    """The target's value as it is shown."""
    return f"{100 * goal:g} %" if is_fraction(metric) else f"{goal:g}"


def _to_target(row: Row) -> str:
    return megabytes(row.to_target.mean) if row.to_target is not None else share_reached(row)


def share_reached(row: Row) -> str:
    """What stands in place of bytes to a target that not every seed reached."""
    return "not reached" if not row.reached else f"not reached (only {row.reached} of {len(row.seeds)} seeds)"


def _value(value: float, metric: str) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:#.3g}".rstrip(".")


def _spread(spread: Spread, metric: str) -> str:
    mean, low, high = (_value(value, metric) for value in (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low}–{high})"


def megabytes(count: float, unit: float = 1e6) -> str:
    """Bytes in a unit, to three digits."""
    amount = count / unit
    if not count or amount >= 999.5:
        return f"{amount:,.0f}"
    return f"{amount:#.3g}".rstrip(".")


def markdown(cells: Sequence[Sequence[str]], pictures: Mapping[str, str], notes: Iterable[str]) -> str:
    """The report as a Markdown page: table, what its cells mean, pictures (file and words), notes."""
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    rule = ["---", *["---:"] * (len(header) - 1)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))
    lines = "".join(f"- {note}\n" for note in notes)
    shown = "\n\n".join(f"![{words}]({file})" for file, words in pictures.items())
    return f"{table}\n\n{MEANING}\n\n{shown}\n" + (f"\n{lines}" if lines else "")


def csv_text(rows: Sequence[Row], metric: str, goal: float | None, budget_bytes: float | None = None) -> str:
    """The table as CSV: whole bytes, metrics unrounded, empty where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        values = [row.final.mean, row.final.low, row.final.high, row.best.mean, row.best.low, row.best.high]
        target = ["", "", ""] if goal is None else [goal, _mean_bytes(row.to_target), row.reached]
        writer.writerow(
            [row.label, " ".join(map(str, row.seeds)), metric]
            + ["" if np.isnan(value) else value for value in values]
            + [round(row.upload_bytes), *target, round(row.download_bytes), *_budget_cells(row, budget_bytes)]
            + [_mean_bytes(row.download_to_target)]
        )
    return stream.getvalue()


def _budget_cells(row: Row, budget_bytes: float | None) -> list[float | int | str]:
    if budget_bytes is None or row.within_budget is None:
        return ["", "", "", ""]
    found = row.within_budget
    return [round(budget_bytes), *("" if np.isnan(v) else v for v in (found.mean, found.low, found.high))]


def _mean_bytes(spread: Spread | None) -> int | str:
    return "" if spread is None else round(spread.mean)
