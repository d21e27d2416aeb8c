"""From runs to curves: the seeds of one configuration together, each configuration under a label of its own."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launch.reports.results import RunResult

Settings = Mapping[str, str]
Items = tuple[tuple[str, str], ...]
Key = tuple[str, Items, int]  # name, settings, and which repetition of a seed (or, while looking for one, the seed)


@dataclass(frozen=True, eq=False)
class Band:
    """A metric over the seeds of a curve, at the rounds where every seed has a finite value.

    Attributes:
        rounds: rising (E,).
        upload_bytes: until then, mean over seeds (E,).
        download_bytes: until then, mean over seeds (E,).
        mean: mean over seeds (E,).
        low: least over seeds (E,).
        high: largest over seeds (E,).
    """

    rounds: NDArray[np.float64]
    upload_bytes: NDArray[np.float64]
    download_bytes: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Runs that differ only by seed, under the label that table and figure show."""

    label: str
    runs: tuple[RunResult, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, rising."""
        return tuple(sorted(run.seed for run in self.runs))

    @property
    def upload_bytes(self) -> float:
        """Bytes uploaded by a whole run, mean over seeds."""
        return float(np.mean([run.upload_bytes[-1] for run in self.runs]))

    @property
    def download_bytes(self) -> float:
        """Bytes downloaded by a whole run, mean over seeds."""
        return float(np.mean([run.download_bytes[-1] for run in self.runs]))

    def band(self, metric: str) -> Band:
        """Averages the seeds at equal rounds."""
        finite = [run.rounds[np.isfinite(run.metrics[metric])] for run in self.runs]
        shared = sorted(set(finite[0].tolist()).intersection(*(rounds.tolist() for rounds in finite[1:])))
        at = [np.searchsorted(run.rounds, shared) for run in self.runs]
        picked = list(zip(self.runs, at, strict=True))
        values = np.array([run.metrics[metric][rows] for run, rows in picked])
        return Band(
            rounds=np.array(shared, np.float64),
            upload_bytes=np.mean([run.upload_bytes[rows] for run, rows in picked], axis=0),
            download_bytes=np.mean([run.download_bytes[rows] for run, rows in picked], axis=0),
            mean=values.mean(axis=0),
            low=values.min(axis=0),
            high=values.max(axis=0),
        )


def group_runs(runs: Sequence[RunResult]) -> tuple[list[Curve], list[str]]:
    """Puts the seeds of each configuration together.

    Runs of one name that differ in more than the seed become curves of their own, told apart by the settings in
    which they differ. A run that repeats another one bit by bit is left out; one that repeats its configuration and
    seed with another outcome becomes a curve of its own, told apart by its folder.

    Returns:
        The curves, the largest total upload first, and a note for each run left out.
    """
    groups: dict[Key, list[RunResult]] = defaultdict(list)
    notes = []
    repeats: dict[Key, list[RunResult]] = defaultdict(list)
    for run in runs:
        settings = tuple(sorted(run.settings.items()))
        earlier = repeats[run.name, settings, run.seed]
        twin = next((other for other in earlier if other.same_curve(run)), None)
        if twin:
            notes.append(f"left out, the same as {twin.path}: {run.path}")
            continue
        groups[run.name, settings, len(earlier)].append(run)
        earlier.append(run)
    labels = _labels(groups)
    curves = [Curve(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)]
    return sorted(curves, key=lambda curve: (-curve.upload_bytes, curve.label)), notes


def _labels(groups: Mapping[Key, Sequence[RunResult]]) -> list[str]:
    """A label for each group: its name, then the settings and the folder where the name alone is not enough."""
    variants: dict[str, dict[Items, Settings]] = defaultdict(dict)
    for name, items, _ in groups:
        variants[name][items] = dict(items)
    labels = [", ".join([name, *_differences(dict(items), [*variants[name].values()])]) for name, items, _ in groups]
    count = Counter(label for label, (_, _, copy) in zip(labels, groups, strict=True) if copy == 0)
    folders = [
        members[0].path if copy or count[label] > 1 else None
        for label, ((_, _, copy), members) in zip(labels, groups.items(), strict=True)
    ]
    return _with_folders(labels, folders)


def _with_folders(labels: Sequence[str], folders: Sequence[Path | None]) -> list[str]:
    """Adds folders to labels, with as many of those above as tell all apart; a number where none does."""
    parts = [() if folder is None else folder.absolute().parts for folder in folders]
    depths = [min(1, len(some)) for some in parts]
    while True:
        shown = [
            f"{label} ({'/'.join(some[-depth:])})" if depth else label
            for label, some, depth in zip(labels, parts, depths, strict=True)
        ]
        count = Counter(shown)
        deeper = [
            count[label] > 1 and depth < len(some) - 1  # the first part is the root
            for label, some, depth in zip(shown, parts, depths, strict=True)
        ]
        if not any(deeper):
            break
        depths = [depth + more for depth, more in zip(depths, deeper, strict=True)]
    unique: list[str] = []
    for label in shown:
        numbered = (f"{label} {number}" for number in itertools.count(2))
        unique.append(next(one for one in itertools.chain([label], numbered) if one not in unique))
    return unique


def _differences(settings: Settings, variants: Sequence[Settings]) -> list[str]:
    """The fewest settings, in words, that tell all variants of one name apart."""
    keys = {key for variant in variants for key in variant if len({other.get(key) for other in variants}) > 1}
    chosen: list[str] = []
    # A class path comes first: where classes differ, so do their arguments, and the class says it best.
    for key in sorted(keys, key=lambda key: (not key.endswith("class_path"), key.count("."), key)):
        before, after = (len({tuple(v.get(k) for k in some) for v in variants}) for some in (chosen, [*chosen, key]))
        if after > before:
            chosen.append(key)
    return [f"{short_key(key)}={_short_value(settings.get(key, 'none'))}" for key in chosen]


def short_key(key: str) -> str:
    """The key as it is typed on the command line."""
    return key.removesuffix(".class_path").replace(".init_args.", ".")


def _short_value(value: str) -> str:
    if value.startswith("/"):
        return value.rstrip("/").split("/")[-1]
    parts = value.split(".")
    return parts[-1] if all(part.isidentifier() for part in parts) else value
