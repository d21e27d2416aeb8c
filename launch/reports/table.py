"""The table of a report, as cells, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping

import numpy as np

from launch.reports.canvas import is_fraction
from launch.reports.findings import Findings
from launch.reports.rows import Row, Spread

MEANING = "Mean over seeds (smallest–largest); bytes of all clients; 1 MB is 10^6 bytes."
CSV_COLUMNS = (
    *("label", "seeds", "metric", "final_mean", "final_min", "final_max", "best_mean", "best_min", "best_max"),
    *("upload_bytes", "target", "upload_bytes_to_target", "seeds_reached", "download_bytes"),
    *("budget_bytes", "budget_mean", "budget_min", "budget_max", "download_bytes_to_target", "p_value", "p_against"),
)


def table_cells(found: Findings) -> list[list[str]]:
    """The table as text, header first."""
    metric = found.metric
    unit = " (%)" if is_fraction(metric) else ""
    columns = {
        "run": [row.label for row in found.rows],
        "seeds": [str(len(row.seeds)) for row in found.rows],
        f"final {metric}{unit}": [_spread(row.final, metric) for row in found.rows],
        f"best {metric}{unit}": [_spread(row.best, metric) for row in found.rows],
    }
    if found.significance:
        columns["p"] = [p_cell(found.significance.p_values.get(row.label)) for row in found.rows]
    if found.budget_bytes is not None:
        within = [row.within_budget for row in found.rows]
        columns[f"{metric} at {found.budget_bytes / 1e6:g} MB{unit}"] = [
            _spread(w, metric) if w else "" for w in within
        ]
    columns["upload (MB)"] = [megabytes(row.upload_bytes) for row in found.rows]
    if found.goal is not None:
        columns[f"upload to {target_title(metric, found.goal)} (MB)"] = [_to_target(row) for row in found.rows]
    columns["download (MB)"] = [megabytes(row.download_bytes) for row in found.rows]
    return [list(columns), *(list(cells) for cells in zip(*columns.values(), strict=True))]


def meaning(found: Findings) -> list[str]:
    """What the cells of the table mean, in sentences."""
    said = found.significance
    return [MEANING, *([said.meaning(found.metric)] if said else [])]


def p_cell(value: float | None) -> str:
    """A p value as it is shown."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def target_title(metric: str, goal: float) -> str:
    """The target's value as it is shown."""
    return f"{100 * goal:g} %" if is_fraction(metric) else f"{goal:g}"


def _to_target(row: Row) -> str:
    return megabytes(row.to_target.mean) if row.to_target is not None else share_reached(row)


def share_reached(row: Row) -> str:
    """What stands in place of bytes to a target that not every seed reached."""
    return "not reached" if not row.reached else f"not reached (only {row.reached} of {len(row.seeds)} seeds)"


def value_text(value: float, metric: str) -> str:
    """A value of the metric as it is shown, without its unit."""
    if not np.isfinite(value):
        return "–"
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:#.3g}".rstrip(".")


def _spread(spread: Spread, metric: str) -> str:
    mean, low, high = (value_text(value, metric) for value in (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low}–{high})"


def megabytes(count: float, unit: float = 1e6) -> str:
    """Bytes in a unit, to three digits."""
    amount = count / unit
    if not count or amount >= 999.5:
        return f"{amount:,.0f}"
    return f"{amount:#.3g}".rstrip(".")


def markdown(found: Findings, pictures: Mapping[str, str]) -> str:
    """The report as a Markdown page: table, what its cells mean, pictures (file and words), notes."""
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in table_cells(found)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))
    lines = "".join(f"- {note}\n" for note in found.notes)
    shown = "\n\n".join(f"![{words}]({file})" for file, words in pictures.items())
    return "\n\n".join([table, *meaning(found), shown]) + "\n" + (f"\n{lines}" if lines else "")


def csv_text(found: Findings) -> str:
    """The table as CSV: whole bytes, metrics unrounded, empty where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in found.rows:
        values = [row.final.mean, row.final.low, row.final.high, row.best.mean, row.best.low, row.best.high]
        target = ["", "", ""] if found.goal is None else [found.goal, _mean_bytes(row.to_target), row.reached]
        said = found.significance
        p_value = said.p_values.get(row.label) if said else None
        writer.writerow(
            [row.label, " ".join(map(str, row.seeds)), found.metric]
            + ["" if np.isnan(value) else value for value in values]
            + [round(row.upload_bytes), *target, round(row.download_bytes), *_budget_cells(row, found.budget_bytes)]
            + [_mean_bytes(row.download_to_target), "" if p_value is None else p_value]
            + [said.reference if said and p_value is not None else ""]
        )
    return stream.getvalue()


def _budget_cells(row: Row, budget_bytes: float | None) -> list[float | int | str]:
    if budget_bytes is None or row.within_budget is None:
        return ["", "", "", ""]
    found = row.within_budget
    return [round(budget_bytes), *("" if np.isnan(v) else v for v in (found.mean, found.low, found.high))]


def _mean_bytes(spread: Spread | None) -> int | str:
    return "" if spread is None else round(spread.mean)
