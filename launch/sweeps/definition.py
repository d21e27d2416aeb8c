"""What a sweep is: a base, keys for all, a list of runs, a grid that is crossed with them, and seeds."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from fedsim.errors import ConfigurationError, unknown_name
from launch.configuration import NOT_PART_OF_A_RUN, flatten
from launch.registry import PRESETS
from launch.sweeps.search_space import SearchSpace, space_of
from launch.yaml_files import NoSettings, parse_yaml, read_yaml

NAME = "name"
"""What a run of the list may be called by, beside its keys."""


@dataclass(frozen=True)
class Sweep:
    """Which runs there are to be. Keys are dotted, as the command line of `fedsim run` spells them.

    Attributes:
        base: a preset or a file that all start from; None for the preset `digits`.
        keys: for all runs.
        runs: each some keys, and a name where one is wanted; none is a single run without any.
        grid: the values of each key, crossed with every run.
        seeds: of every run; None leaves the seed to the keys.
        report: what `fedsim report` is given at the end, by its options.
        space: what Optuna chooses from instead of a list and a grid: by key a list of values, or low and high with
            log and step where they are wanted.
        search: what FLASC-Search tries instead of a list and a grid.
    """

    base: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    runs: Sequence[Mapping[str, Any]] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Sequence[int] | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)
    search: SearchSpace | None = None

    def __post_init__(self) -> None:
        for key in {key for keys in (self.keys, self.grid, self.space, *self.runs) for key in keys}:
            if key in NOT_PART_OF_A_RUN:
                hint = "name what all start from under base:" if key == "config" else "the sweep gives each run its own"
                raise ConfigurationError(f"{key} is no key that runs of a sweep can have; leave it out, {hint}")
        for key, values in self.grid.items():
            if not isinstance(values, list | tuple) or not values:
                raise ConfigurationError(f"grid: {key} is {values}; expected a list of its values, as [1, 4, 16]")
        if self.seeds is not None and not (self.seeds and all(_is_seed(seed) for seed in self.seeds)):
            raise ConfigurationError(f"seeds is {self.seeds}; expected whole numbers of 0 or more, as [0, 1, 2]")
        if self.space and (self.grid or self.runs):
            raise ConfigurationError(
                "space stands beside grid or runs; give a space to Optuna, or the others to a sweep"
            )
        if self.search and (self.grid or self.runs or self.space or self.report):
            raise ConfigurationError(
                "search stands beside grid, runs, space or report; leave these out, a search has its own runs and table"
            )
        if self.seeds is not None and any("seed" in keys for keys in (self.grid, self.space, *self.runs)):
            raise ConfigurationError("seed stands among a run's keys, and there are seeds; give one of both")


def read_sweep(given: str) -> Sweep:
    """Reads a file that says what a sweep is.

    Args:
        given: its path, or the name of one in launch/presets.

    Raises:
        ConfigurationError: it is none, in one line.
    """
    path = Path(os.path.expanduser(given))
    if not path.is_file():
        path = PRESETS / f"{given}.yaml"
    if not path.is_file():
        raise ConfigurationError(f"--config {given} is no file; give a sweep in YAML (docs/sweeps.md)")
    try:
        return sweep_of(read_yaml(path))
    except (NoSettings, ConfigurationError) as error:
        raise ConfigurationError(f"{given}: {error}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{given} cannot be read ({' '.join(str(error).split())}); correct it") from error


def sweep_of(found: Mapping[Any, Any]) -> Sweep:
    """Makes a sweep of what stands in its file.

    Raises:
        ConfigurationError: an entry is unknown, or not of its kind.
    """
    kinds = {"base": str, "keys": dict, "runs": list, "grid": dict, "seeds": list}
    kinds |= dict.fromkeys(("report", "space", "search"), dict)
    assert kinds.keys() == {field.name for field in fields(Sweep)}
    for entry, value in found.items():
        if entry not in kinds:
            raise unknown_name("entry of a sweep", str(entry), kinds)
        if not isinstance(value, kinds[entry]):
            words = {str: "a name", dict: "keys with values", list: "a list"}
            raise ConfigurationError(f"{entry} is {value!r}; expected {words[kinds[entry]]}")
    runs = found.get("runs", [])
    for run in runs:
        if not isinstance(run, dict):
            raise ConfigurationError(f"runs: {run!r} is no run; expected keys with values, as {{method: LoRA}}")
    keyed = {entry: flatten(found[entry]) for entry in ("keys", "grid") if entry in found}
    space = _flatten_space(found.get("space", {}))
    search = space_of(found["search"]) if "search" in found else None
    return Sweep(**{**found, **keyed, "runs": [flatten(run) for run in runs], "space": space, "search": search})


def _flatten_space(space: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens as keys are, but for what says from where to where."""
    flat: dict[str, Any] = {}
    for key, value in space.items():
        inside = isinstance(value, dict) and not {"low", "high"} & value.keys()
        flat |= _flatten_space(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat


def parse_grid(text: str) -> tuple[str, list[Any]]:
    """Reads a key with its values from the command line, KEY=VALUE,VALUE,...

    Raises:
        ConfigurationError: it is not of that form.
    """
    key, equals, values = text.partition("=")
    try:
        found = parse_yaml(f"[{values}]")
    except (NoSettings, yaml.YAMLError):
        found = None
    if not (equals and key and isinstance(found, list) and found):
        raise ConfigurationError(f"--grid is {text!r}; expected KEY=VALUE,VALUE,... as in method.lora_rank=1,4,16")
    return key.lstrip("-"), found


def as_arguments(keys: Mapping[str, Any]) -> list[str]:
    """Spells keys as the command line does: whatever chooses a class before that class's own keys."""
    ordered = sorted(keys.items(), key=lambda item: "." in item[0])
    return [f"--{key}={value if isinstance(value, str) else yaml_flow(value)}" for key, value in ordered]


def yaml_flow(value: Any) -> str:
    """Writes a value on one line, as YAML reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("\n").removesuffix("\n...")


def _is_seed(seed: Any) -> bool:
    return isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
