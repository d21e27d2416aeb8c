"""The runs of a sweep, before any of them starts: named by what differs, checked, each once."""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from data_partitions.errors import DataError
from fedsim.errors import ConfigurationError
from launch.configuration import Settings, flatten, read_settings
from launch.reports.results import WITHOUT_EFFECT
from launch.run_directory import MAY_DIFFER, earlier_settings, refuse_foreign
from launch.sweeps.definition import NAME, Sweep, as_arguments, yaml_flow

LONGEST_NAME = 120
"""Characters; file systems take 255 bytes."""


@dataclass(frozen=True)
class PlannedRun:
    """One run that there is to be.

    Attributes:
        folder: its run directory, named by what differs.
        changes: the keys of its own, dotted, from the list and the grid, without the sweep's seed.
        seed: its seed.
        arguments: of `fedsim run`, without where it writes and whether it goes on.
        identity: of its settings: equal for equal runs.
        finished: whether it was, when the sweep was planned.
    """

    folder: Path
    changes: Mapping[str, Any]
    seed: int
    arguments: tuple[str, ...]
    identity: str
    finished: bool = False

    @property
    def all_arguments(self) -> tuple[str, ...]:
        """Those of `fedsim run`: it goes on where it stopped."""
        return (*self.arguments, f"--run_dir={self.folder}", "--resume=auto")

    def read(self) -> Settings:
        """Reads its settings."""
        return read_settings(self.all_arguments)


def shown(runs: Sequence[PlannedRun]) -> str:
    """Shows each run as the `fedsim run` that it is, a line each."""
    state = {True: " (finished)", False: ""}
    return "".join(f"{run.folder}{state[run.finished]}: fedsim run {shlex.join(run.arguments)}\n" for run in runs)


def identity_of(settings: Mapping[str, Any]) -> str:
    """Returns a hash of settings under dotted keys, but for those without effect on what a run comes to."""
    counted = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, default=str).encode()).hexdigest()[:12]


def plan_runs(sweep: Sweep, common: Sequence[str], out: Path) -> list[PlannedRun]:
    """Lays out the runs of a sweep, all of one seed before the next seed. Nothing is written.

    Args:
        sweep: what was asked for.
        common: arguments of `fedsim run` for all of them; a run's own keys and the grid's come behind and win.
        out: where their directories will be.

    Raises:
        ConfigurationError: keys that are no run's, or a directory that holds something else.
    """
    for_all = shared_arguments(sweep, common)
    found: dict[str, PlannedRun] = {}
    points = list(_points(sweep))
    read = [_read(for_all, changes) for _, changes in points]
    labels = _labels(points, [flatten(settings.resolved) for _, settings in read])
    for seed in [None] if sweep.seeds is None else sweep.seeds:
        for (_, changes), (arguments, settings), label in zip(points, read, labels, strict=True):
            own = settings.run.seed if seed is None else seed
            seeded = replace(settings, resolved={**settings.resolved, "seed": own})
            identity = identity_of(flatten(seeded.resolved))
            if identity not in found:  # else another run comes to the same
                given = arguments if seed is None else [*arguments, f"--seed={seed}"]
                folder = out / (f"{label}-s{own}" if label else f"s{own}")
                finished = is_finished(folder, seeded)
                found[identity] = PlannedRun(folder, changes, own, tuple(given), identity, finished)
    return list(found.values())


def shared_arguments(sweep: Sweep, common: Sequence[str]) -> list[str]:
    """Returns the arguments of `fedsim run` that all runs have: the base, the sweep's keys, and those given for all.

    Raises:
        ConfigurationError: two bases, or a directory for all.
    """
    if sweep.base is not None and any(argument.partition("=")[0] == "--config" for argument in common):
        raise ConfigurationError(f"--config is given for all runs, but the sweep has base: {sweep.base}; leave one out")
    for argument in common:
        if argument.partition("=")[0] in ("--run_dir", "--resume"):
            raise ConfigurationError(f"{argument} is given for all runs; leave it out, each has its own below --out")
    base = [] if sweep.base is None else [f"--config={sweep.base}"]
    return [*base, *as_arguments(sweep.keys), *common]


def is_finished(folder: Path, settings: Settings) -> bool:
    """Whether a run of these settings is finished in a directory.

    Raises:
        ConfigurationError: the directory holds a run with other settings, or no run.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; give another --out")
    refuse_foreign(folder)
    before = earlier_settings(folder)
    if not before:
        return False
    now = flatten(settings.as_chosen(before).resolved)
    finished = (folder / "summary.json").exists()
    if finished and identity_of(before) == identity_of(now):
        return True
    fewer = finished and before.get("rounds", 0) > now["rounds"]
    may_differ = WITHOUT_EFFECT if fewer else MAY_DIFFER  # a run may be given more rounds
    differing = [k for k in sorted({*before, *now}) if k not in may_differ and before.get(k) != now.get(k)]
    if differing:
        changes = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in differing)
        raise ConfigurationError(
            f"{folder} holds a run with other settings ({changes}); remove it or give another --out"
        )
    return False


def _points(sweep: Sweep) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Crosses the list with the grid: the name that a run was given, and its keys."""
    for listed in sweep.runs or [{}]:
        own = {key: value for key, value in listed.items() if key != NAME}
        for values in product(*sweep.grid.values()):
            yield listed.get(NAME), {**own, **dict(zip(sweep.grid, values, strict=True))}


def _read(common: Sequence[str], changes: Mapping[str, Any]) -> tuple[list[str], Settings]:
    own = as_arguments(changes)
    arguments = [*common, *own]
    if any("\n" in argument for argument in arguments):
        raise ConfigurationError("a value of a sweep's key has more than one line; expected one")
    try:
        return arguments, read_settings(arguments)
    except (ConfigurationError, DataError) as error:
        if own:
            error.add_note(f"in the run {' '.join(own)}")
        raise


def _labels(points: Sequence[tuple[str | None, Mapping[str, Any]]], resolved: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names each point by its name or what differs; a hash is added where that is too long, or two would be alike."""
    labels = []
    for (name, changes), settings in zip(points, resolved, strict=True):
        shown = [key for key in changes if name is None or _differs(key, name, points)]
        parts = [f"{_short(key, settings)}={_safe(changes[key])}" for key in shown]
        labels.append(",".join(parts if name is None else [_safe(name), *parts]))
    hashes = [identity_of({**settings, "seed": None}) for settings in resolved]
    alike = Counter(label for _, label in {*zip(hashes, labels, strict=True)})
    return [
        f"{label[:LONGEST_NAME]}-{identity}" if alike[label] > 1 or len(label) > LONGEST_NAME else label
        for label, identity in zip(labels, hashes, strict=True)
    ]


def _differs(key: str, name: str, points: Sequence[tuple[str | None, Mapping[str, Any]]]) -> bool:
    """Whether runs of one name differ in a key."""
    return len({str(changes.get(key)) for other, changes in points if other == name}) > 1


def _short(key: str, settings: Mapping[str, Any]) -> str:
    """The key without its group where nothing else is called so: lora_rank, but client.lr."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in settings) == 1 else key


def _safe(value: Any) -> str:
    """A value as a part of a folder's name."""
    text = value if isinstance(value, str) else yaml_flow(value)
    return re.sub(r"[^\w.+-]+", "_", text.rstrip("/").rpartition("/")[2], flags=re.ASCII).strip("._") or "none"
