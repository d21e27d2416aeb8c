"""What finished run directories say: found, read and checked without importing torch."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fedsim.errors import ConfigurationError

BYTE_COLUMNS = ("upload_bytes", "download_bytes")
BOOKKEEPING = ("round", *BYTE_COLUMNS, "upload_value_bytes", "download_value_bytes", "seconds")
REPORTS = ("report", "report_curves", "report_target", "report_heat_map", "report_pareto")
REPORT_FILES = (
    *(f"{name}.{kind}" for name in REPORTS for kind in ("png", "svg", "csv", "md", "tex", "html")),
    *("sweep.csv", "search.csv", "search.png", "search.svg"),
    *(f"optuna.db{end}" for end in ("", "-journal", "-wal", "-shm")),
)
# These say how long a run lives, not what it learns: two runs may differ in them and still share a curve.
WITHOUT_EFFECT = ("checkpoint_every_rounds", "stop_within_seconds", "collective_timeout_seconds")
SEARCH_DEPTH = 2


@dataclass(frozen=True, eq=False)
class RunResult:
    """One finished run.

    Attributes:
        path: its directory.
        name: the label its method goes by, shared by its seeds ("FLASC 1/4").
        seed: its seed.
        settings: its configuration, flat ("client.lr"), without seeds and without what has no effect on the curve.
        main_metrics: the metrics of the main view, in the order of summary.json.
        higher_is_better: which way is better, by metric.
        rounds: rounds evaluated, rising (E,).
        upload_bytes: uploaded until then by all clients together (E,).
        download_bytes: downloaded until then by all clients together (E,).
        metrics: each metric at each evaluation (E,); NaN where it has no finite value.
    """

    path: Path
    name: str
    seed: int
    settings: Mapping[str, str]
    main_metrics: tuple[str, ...]
    higher_is_better: Mapping[str, bool]
    rounds: NDArray[np.int64]
    upload_bytes: NDArray[np.int64]
    download_bytes: NDArray[np.int64]
    metrics: Mapping[str, NDArray[np.float64]]

    def same_curve(self, other: "RunResult") -> bool:
        """Whether the other run measured the same values at the same bytes."""
        mine, theirs = self._columns(), other._columns()
        return mine.keys() == theirs.keys() and all(
            np.array_equal(mine[key], theirs[key], equal_nan=True) for key in mine
        )

    def _columns(self) -> dict[str, NDArray[Any]]:
        fixed = {"round": self.rounds, "upload_bytes": self.upload_bytes, "download_bytes": self.download_bytes}
        return {**fixed, **self.metrics}


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Finds the run directories at or up to two levels below the given paths, each once.

    Args:
        paths: run directories, or directories that hold some; files of an earlier report or sweep are passed over, so
            that `runs/demo/*` works.

    Returns:
        The finished runs and the unfinished ones.

    Raises:
        ConfigurationError: a path does not exist or holds no run, or no run is finished.
    """
    finished: dict[Path, Path] = {}
    unfinished: dict[Path, Path] = {}
    for path in paths:
        if path.is_file() and path.name in REPORT_FILES:
            continue
        if not path.is_dir():
            fault = "is a file" if path.exists() else "does not exist"
            raise ConfigurationError(f"{path} {fault}; give a run directory, or a directory that holds some")
        found = list(_runs_below(path, SEARCH_DEPTH))
        if not found:
            raise ConfigurationError(f"no run in {path} (a finished run holds summary.json and metrics.csv)")
        for run in found:
            (finished if _is_finished(run) else unfinished).setdefault(run.resolve(), run)
    if not finished:
        given = ", ".join(map(str, unfinished.values() or paths))
        raise ConfigurationError(f"no finished run in {given}: summary.json is missing; finish with --resume auto")
    return list(finished.values()), list(unfinished.values())


def _is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file() and (folder / "metrics.csv").is_file()


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if _is_finished(folder):
        yield folder
        return
    below: list[Path] = []
    if depth > 0:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        below = [run for child in children for run in _runs_below(child, depth - 1)]
    yield from below
    if not below and any((folder / name).is_file() for name in ("config.yaml", "metrics.csv")):
        yield folder


def read_run(path: Path) -> RunResult:
    """Reads one finished run directory.

    Raises:
        ConfigurationError: a file is broken; the message names the file, and the line where there is one.
    """
    try:
        summary = _read_summary(path / "summary.json")
        settings = _read_settings(path / "config.yaml")
        columns = _read_metrics(path / "metrics.csv")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"cannot read the run {path} ({error})") from error
    return RunResult(
        path=path,
        name=str(summary["name"]),
        seed=int(summary["seed"]),
        settings=settings,
        main_metrics=tuple(summary["final"]),
        higher_is_better={str(metric): bool(better) for metric, better in summary["higher_is_better"].items()},
        rounds=np.array(columns["round"], np.int64),
        upload_bytes=np.array(columns["upload_bytes"], np.int64),
        download_bytes=np.array(columns["download_bytes"], np.int64),
        metrics={key: np.array(cells, np.float64) for key, cells in columns.items() if key not in BOOKKEEPING},
    )


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{file} line {error.lineno}: not JSON ({error.msg})") from error
    kinds = {"name": str, "seed": int, "final": dict, "higher_is_better": dict}
    for key, kind in kinds.items():
        if not isinstance(summary, dict) or not isinstance(summary.get(key), kind):
            raise ConfigurationError(f"{file}: no key {key!r} of type {kind.__name__}; is this a run's summary?")
    return summary


def _read_settings(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        # libyaml is ten times faster, which a sweep of a thousand runs feels; not every PyYAML has it.
        config = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file} line {mark.line + 1}" if mark else str(file)
        raise ConfigurationError(f"{where}: not YAML ({getattr(error, 'problem', error)})") from error
    flat = _flatten(config)
    return {key: text for key, text in flat.items() if key.split(".")[-1] not in ("seed", *WITHOUT_EFFECT)}


def _flatten(config: object, prefix: str = "") -> dict[str, str]:
    if not isinstance(config, dict):
        return {prefix: str(config)}
    parts = (_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items())
    return {key: text for part in parts for key, text in part.items()}


def _read_metrics(file: Path) -> dict[str, list[int] | list[float]]:
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        missing = [name for name in ("round", *BYTE_COLUMNS) if name not in header]
        if missing:
            raise ConfigurationError(f"{file} line 1: no column {', '.join(missing)}")
        if len(set(header)) < len(header):
            raise ConfigurationError(f"{file} line 1: a column twice")
        columns: dict[str, list[Any]] = {name: [] for name in header}
        for cells in reader:
            where = f"{file} line {reader.line_num}"
            if len(cells) != len(header):
                raise ConfigurationError(f"{where}: {len(cells)} cells, expected {len(header)}")
            for name, cell in zip(header, cells, strict=True):
                columns[name].append(_number(cell, name, where))
            _check_order(columns, where)
    if not columns["round"]:
        raise ConfigurationError(f"{file}: no evaluation, only a header")
    return columns


def _number(cell: str, column: str, where: str) -> int | float:
    """Reads a cell: whole numbers for rounds and bytes; NaN for a metric that is empty or not finite."""
    exact = column in BOOKKEEPING and column != "seconds"
    try:
        if exact:
            return int(cell)
        value = float(cell) if cell.strip() else math.nan
    except ValueError as error:
        kind = "a whole number" if exact else "a number"
        raise ConfigurationError(f"{where}: {column} is {cell!r}, expected {kind}") from error
    return value if math.isfinite(value) else math.nan


def _check_order(columns: Mapping[str, list[Any]], where: str) -> None:
    for name in ("round", *BYTE_COLUMNS):
        last = columns[name][-2:]
        if len(last) == 2 and (last[1] < last[0] or (name == "round" and last[1] == last[0])):
            raise ConfigurationError(f"{where}: {name} {last[1]} after {last[0]}, expected it to rise")
