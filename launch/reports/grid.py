"""Curves as a grid over two numeric settings, as ranks by densities, and which of them are on the Pareto front."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.errors import ConfigurationError, unknown_name
from launch.reports.curves import Curve, short_key
from launch.reports.findings import Findings
from launch.reports.rows import Row

Keys = tuple[str, str]


@dataclass(frozen=True)
class Grid:
    """What the runs at each pair of values came to.

    Attributes:
        keys: the two settings, as typed on the command line.
        across: values of the first, rising.
        up: values of the second, rising.
        cells: the line of the table at each pair of values; not every pair needs one.
        front: the pairs on the Pareto front of the final metric, mean over seeds, against upload.
        notes: what stands outside the grid, and why.
    """

    keys: Keys
    across: Sequence[float]
    up: Sequence[float]
    cells: Mapping[tuple[float, float], Row]
    front: frozenset[tuple[float, float]]
    notes: Sequence[str]


def grid_of(found: Findings, keys: Keys) -> Grid:
    """Puts every curve that has a number for both keys, and a finite final metric, into its cell.

    Raises:
        ConfigurationError: no run has a key, a key has fewer than two values, or two curves share a cell.
    """
    settings = [_typed(curve) for curve in found.curves]
    for key in keys:
        known = {name for some in settings for name in some}
        if key not in known:
            raise unknown_name("setting of --heat_map", key, known)
    cells: dict[tuple[float, float], Row] = {}
    notes = []
    for row, some in zip(found.rows, settings, strict=True):
        at = (_number(some.get(keys[0])), _number(some.get(keys[1])))
        missing = [f"no number for {key}" for key, value in zip(keys, at, strict=True) if not math.isfinite(value)]
        missing += [] if math.isfinite(row.final.mean) else [f"no finite final {found.metric}"]
        if missing:
            notes.append(f"not in the heat map, {missing[0]}: {row.label}")
        elif at in cells:
            place = ", ".join(f"{key}={value:g}" for key, value in zip(keys, at, strict=True))
            raise ConfigurationError(
                f"--heat_map: {cells[at].label} and {row.label} both have {place}, expected one; report them apart"
            )
        else:
            cells[at] = row
    values = [sorted({at[axis] for at in cells}) for axis in (0, 1)]
    for key, some_values in zip(keys, values, strict=True):
        if len(some_values) < 2:
            only = f"only {some_values[0]:g}" if some_values else "none"
            raise ConfigurationError(f"--heat_map: values of {key} are {only}, expected runs with two or more")
    front = pareto([(row.upload_bytes, row.final.mean) for row in cells.values()], found.higher)
    best = frozenset(at for at, is_on in zip(cells, front, strict=True) if is_on)
    return Grid(keys, values[0], values[1], cells, best, notes)


def pareto(points: Sequence[tuple[float, float]], higher: bool) -> list[bool]:
    """Tells which points no other one beats: less cost at a value as good, or a better value at no more cost.

    Args:
        points: cost and value.
        higher: whether more of the value is better; less cost always is.
    """
    sign = 1 if higher else -1
    front: list[bool] = [False] * len(points)
    best, its_cost = -math.inf, -math.inf
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -sign * points[index][1])):
        cost, value = points[index][0], sign * points[index][1]
        if value > best:
            best, its_cost = value, cost
        front[index] = value == best and cost == its_cost
    return front


def grid_csv(grid: Grid, metric: str) -> str:
    """A row for each cell: the final metric over seeds, the upload, and whether it is on the front."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*grid.keys, "label", "seeds", "metric", "mean", "min", "max", "upload_bytes", "on_front"])
    for at, row in sorted(grid.cells.items()):
        spread = (row.final.mean, row.final.low, row.final.high)
        seeds = " ".join(map(str, row.seeds))
        writer.writerow([*at, row.label, seeds, metric, *spread, round(row.upload_bytes), int(at in grid.front)])
    return stream.getvalue()


def _typed(curve: Curve) -> dict[str, str]:
    return {short_key(key): text for key, text in curve.runs[0].settings.items()}


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan
