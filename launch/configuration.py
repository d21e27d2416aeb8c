"""The keys of a run: typed signatures read by jsonargparse, presets by name, and every mistake answered in one line."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from data_partitions.dataset import DataSet
from data_partitions.errors import DataError
from data_partitions.partition import Partitioner
from fedsim.errors import ConfigurationError, unknown_name
from fedsim.method import Method
from fedsim.options import ClientOptions, CommunicationOptions, ServerOptions, require
from launch.registry import BACKBONES, PRESETS, choices, import_choices

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
_CHOSEN_BY_NAME = {"method": "methods", "data": "datasets", "partition": "partitioners"}
NOT_PART_OF_A_RUN = ("config", "run_dir", "resume", "debug")


@dataclass
class Settings:
    """Everything one run was asked for, instantiated and checked.

    Attributes:
        resolved: the same as plain data, with absolute paths: what config.yaml holds.
    """

    method: Method
    backbone_path: str
    data: DataSet
    partition: Partitioner
    client: ClientOptions
    server: ServerOptions
    communication: CommunicationOptions
    rounds: int
    cohort_size: int
    seed: int
    evaluate_every_rounds: int
    checkpoint_every_rounds: int
    precision: str
    accelerator: str
    threads_per_worker: int
    resume: str
    run_dir: Path | None
    resolved: dict[str, Any]


def read_settings(argv: Sequence[str]) -> Settings:
    """Reads the arguments of `fedsim run`.

    Args:
        argv: what stands behind `run`. Without --config the preset `digits` is read first.

    Returns:
        The settings; nothing was loaded yet.

    Raises:
        ConfigurationError: anything that is no valid configuration, in one line.
    """
    import_choices()
    parser = build_parser()
    try:
        config = parser.parse_args(_with_preset(list(argv)))
        built = parser.instantiate(config)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise _explain(error, parser) from error
    for name in ("rounds", "cohort_size", "evaluate_every_rounds", "checkpoint_every_rounds", "threads_per_worker"):
        require(name, built[name], built[name] >= 1, "1 or more")
    require("seed", built.seed, built.seed >= 0, "0 or more")
    if built.backbone.path is None:
        raise ConfigurationError("backbone.path is missing; give a folder, a hub id (owner/name), or glyphs")
    config.backbone.path = built.backbone.path = _absolute(built.backbone.path)
    resolved = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))
    resolved = {key: value for key, value in resolved.items() if key not in NOT_PART_OF_A_RUN}
    fields = {key: value for key, value in vars(built).items() if key not in ("config", "backbone", "debug", "run_dir")}
    run_dir = None if built.run_dir is None else Path(built.run_dir).expanduser()
    return Settings(**fields, backbone_path=built.backbone.path, run_dir=run_dir, resolved=resolved)


def build_parser() -> ArgumentParser:
    """Builds the parser of `fedsim run`; defaults are the paper's, presets spell every key."""
    parser = ArgumentParser(
        prog="fedsim run", description="Runs one experiment.", exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="a YAML file or the name of a preset (fedsim list presets)"
    )
    parser.add_subclass_arguments(Method, "method", required=True)
    parser.add_argument(
        "--backbone.path", type=str | None, help="a folder, a hub id (owner/name), or glyphs, the embedded one"
    )
    parser.add_subclass_arguments(DataSet, "data", required=True)
    parser.add_subclass_arguments(Partitioner, "partition", required=True)
    parser.add_class_arguments(ClientOptions, "client")
    parser.add_class_arguments(ServerOptions, "server")
    parser.add_class_arguments(CommunicationOptions, "communication")
    parser.add_argument("--rounds", type=int, default=100, help="server steps in all")
    parser.add_argument("--cohort_size", type=int, default=10, help="clients a round, sampled without replacement")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--evaluate_every_rounds", type=int, default=10, help="the last round is always evaluated")
    parser.add_argument("--checkpoint_every_rounds", type=int, default=10, help="the last round is always kept")
    parser.add_argument(
        "--resume", type=Literal["never", "auto"], default="never", help="auto goes on where a run stopped"
    )
    parser.add_argument("--run_dir", type=str | None, help="default runs/<method>-<data>-s<seed>-<n>")
    parser.add_argument("--precision", type=Literal[PRECISIONS], default="32-true", help="as Lightning Fabric names it")
    parser.add_argument("--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads_per_worker", type=int, default=1, help="CPU threads; part of the bits")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def save_yaml(resolved: dict[str, Any]) -> str:
    """Writes resolved settings as config.yaml holds them."""
    return yaml.safe_dump(resolved, sort_keys=False)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted keys, as the command line spells them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix if key in ("init_args", "class_path") and prefix else f"{prefix}.{key}".lstrip(".")
        flat |= flatten(value, name) if isinstance(value, dict) else {name: value}
    return flat


def _with_preset(argv: list[str]) -> list[str]:
    """Puts a path where --config has the name of a preset, and the preset digits where there is no --config."""
    found = False
    for at, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name != "--config":
            continue
        found = True
        if equals:
            argv[at] = f"--config={_config_path(value)}"
        elif at + 1 < len(argv):
            argv[at + 1] = str(_config_path(argv[at + 1]))
    return argv if found else ["--config", str(PRESETS / "digits.yaml"), *argv]


def _config_path(value: str) -> Path:
    path = Path(value).expanduser()
    if path.is_file():
        return path
    preset = PRESETS / f"{value}.yaml"
    if PRESETS in preset.resolve().parents and preset.is_file():
        return preset
    if path.suffix in (".yaml", ".yml") or path.exists():
        raise ConfigurationError(f"--config {value} is no file; give a YAML file or a preset (fedsim list presets)")
    raise unknown_name("preset", value, [choice.name for choice in choices("presets")])


def _absolute(path: str) -> str:
    """Resolves what names a local folder: an existing path, one that starts like a path, or an embedded backbone."""
    local = Path(path).expanduser()
    if local.exists() or path.startswith(("/", ".", "~")):
        return str(local.resolve())
    embedded = BACKBONES / path
    return str(embedded) if "/" not in path and embedded.is_dir() else path


def _explain(error: BaseException, parser: ArgumentParser) -> ConfigurationError:
    """Turns jsonargparse's account of what is wrong into one line with what to do."""
    cause: BaseException | None = error
    while cause is not None:  # what a constructor said itself is the best account
        if isinstance(cause, ConfigurationError | DataError):
            return ConfigurationError(str(cause))
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    key = ".".join(re.findall(r'Parser key "([^"]+)"', text)) or "a value"
    if match := re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", text, re.IGNORECASE):
        return unknown_name("key", match[1], _keys(parser))
    if match := re.search(r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected", text):
        return unknown_name("key", match[1] or match[2], {name.rpartition(".")[2] for name in _keys(parser)})
    if key in _CHOSEN_BY_NAME and (match := re.search(r"Given value: (.+)", text)):
        kind = _CHOSEN_BY_NAME[key]
        return unknown_name(kind.removesuffix("s"), match[1].strip(), [choice.name for choice in choices(kind)])
    if match := re.search(r"expects a function or a callable class: (.+)", text):
        return ConfigurationError(f"{key} cannot be imported ({match[1]}); give the class path of a LightningModule")
    if match := re.search(r"Expected an? (.+?)\.? Got value: (.*)", text):
        return ConfigurationError(f"{key} is {match[2]!r}; expected {_plainly(match[1])}")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    return ConfigurationError("; ".join(lines[:3]) + "; fedsim run --help lists every key")


def _plainly(expected: str) -> str:
    """Says a type in words."""
    if choice := re.fullmatch(r"(?:typing\.)?Literal\[(.+)\]", expected):
        return f"one of {choice[1]}".replace("'", "")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected).replace("typing.", "")


def _keys(parser: ArgumentParser) -> list[str]:
    """Every key there is, with those of every method, data set and partitioner."""
    keys = [action.dest for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")]
    for name, base in (("method", Method), ("data", DataSet), ("partition", Partitioner)):
        for cls in base.__subclasses__():
            sub = ArgumentParser(exit_on_error=False)
            sub.add_class_arguments(cls, name)
            keys += [action.dest for action in sub._actions if action.dest.startswith(f"{name}.")]
    return sorted(set(keys) | {key.partition(".")[0] for key in keys})
