"""The keys of a run: typed signatures read by jsonargparse, presets by name, and every mistake answered in one line."""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from data_partitions.dataset import DataSet
from data_partitions.partition import Partitioner
from fedsim.errors import ConfigurationError, unknown_name
from fedsim.method import Method
from fedsim.options import (
    ClientOptions,
    CommunicationOptions,
    EvaluationOptions,
    PrivacyOptions,
    RunOptions,
    ServerOptions,
    require,
)
from launch.explain import CHOSEN_BY_NAME, explain, import_path, known_keys, unknown_key
from launch.folders import loadable, resolve_folders
from launch.nulls import refuse_nulls
from launch.private import refuse_unprotected
from launch.registry import PRESETS, choices, import_choices
from launch.yaml_files import MOST_CHARACTERS, NoSettings, parse_yaml, read_yaml

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
NOT_PART_OF_A_RUN = ("config", "run_dir", "resume", "debug")
MOST_SECONDS = 10**8
"""What timers take; three years."""


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
    evaluation: EvaluationOptions
    privacy: PrivacyOptions
    run: RunOptions
    precision: str
    accelerator: str
    threads_per_worker: int
    stop_within_seconds: float
    collective_timeout_seconds: float
    resume: str
    run_dir: Path | None
    resolved: dict[str, Any]

    def with_pack(self, pack: int | Literal["auto"]) -> "Settings":
        """The same with a number of slots where that was left to the machine."""
        if self.client.pack != "auto":
            return self
        options = replace(self.client, pack=pack, compile=self.client.compile and pack != 1)
        client = {**self.resolved["client"], "pack": options.pack, "compile": options.compile}
        return replace(self, client=options, resolved={**self.resolved, "client": client})

    def with_noise(self, noise_multiplier: float | None) -> "Settings":
        """The same with the noise that was left to the budget."""
        if noise_multiplier is None or self.privacy.clip is None or self.privacy.noise_multiplier is not None:
            return self
        options = replace(self.privacy, noise_multiplier=noise_multiplier)
        privacy = {**self.resolved["privacy"], "noise_multiplier": noise_multiplier}
        return replace(self, privacy=options, resolved={**self.resolved, "privacy": privacy})

    def as_chosen(self, before: Mapping[str, Any]) -> "Settings":
        """The same with what an earlier run of them, under dotted keys, chose for itself: slots and noise.

        Whatever stands there: what is no such number is not taken, and refused later as another setting.
        """
        pack, noise = before.get("client.pack"), before.get("privacy.noise_multiplier")
        slots: int | Literal["auto"] = pack if type(pack) is int and pack >= 1 else "auto"
        return self.with_pack(slots).with_noise(noise if isinstance(noise, float) and 0 <= noise < math.inf else None)


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
    _find_modules_here()
    parser = build_parser()
    arguments = list(argv)
    try:
        _check_arguments(arguments)
        arguments = _with_preset(arguments)
        config = parser.parse_args(arguments)
        _check_values(config, parser)
        refuse_nulls(config, parser, arguments)
        resolve_folders(config)
        built = parser.instantiate(config)
        resolved = yaml.safe_load(parser.dump(config, skip_unset=False, skip_validation=True))
    except Exception as error:  # of jsonargparse, and of what it calls, on whatever was given
        raise explain(error, parser, arguments) from error
    _refuse_server_keys(built.method, argv)
    _refuse_error_feedback(built.method, built.communication)
    run = RunOptions(**{field.name: built.pop(field.name) for field in dataclasses.fields(RunOptions)})
    refuse_unprotected(built.method, built.privacy, run, built.server, built.communication)
    require("threads_per_worker", built.threads_per_worker, built.threads_per_worker >= 1, "1 or more")
    for name in ("stop_within_seconds", "collective_timeout_seconds"):
        value = getattr(built, name)
        require(name, value, 0 < value <= MOST_SECONDS, f"a number above 0, at most {MOST_SECONDS}")
    if built.client.module is not None:
        built.client.module = _import_module(built.client.module)
    resolved = {key: value for key, value in resolved.items() if key not in NOT_PART_OF_A_RUN}
    fields = {key: value for key, value in vars(built).items() if key not in ("config", "backbone", "debug", "run_dir")}
    run_dir = None if built.run_dir is None else Path(os.path.expanduser(built.run_dir))
    return Settings(**fields, run=run, backbone_path=loadable(built.backbone.path), run_dir=run_dir, resolved=resolved)


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
    # Read as a callable, a class would be made without its backbone; so it travels as its path.
    parser.add_class_arguments(ClientOptions, "client", skip={"module"})
    parser.add_argument("--client.module", type=str | None, help="class path of your own LightningModule")
    parser.add_class_arguments(ServerOptions, "server")
    parser.add_class_arguments(CommunicationOptions, "communication")
    parser.add_class_arguments(EvaluationOptions, "evaluation")
    parser.add_class_arguments(PrivacyOptions, "privacy")
    parser.add_class_arguments(RunOptions)
    parser.add_argument(
        "--resume", type=Literal["never", "auto"], default="never", help="auto goes on where a run stopped"
    )
    parser.add_argument("--run_dir", type=str | None, help="default runs/<method>-<data>-s<seed>-<n>")
    parser.add_argument("--precision", type=Literal[PRECISIONS], default="32-true", help="as Lightning Fabric names it")
    parser.add_argument("--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads_per_worker", type=int, default=1, help="CPU threads; part of the bits")
    parser.add_argument(
        "--stop_within_seconds",
        type=float,
        default=25.0,
        help="after SIGTERM, SIGUSR1 or Ctrl-C the running round may take so long to end; then it is dropped",
    )
    parser.add_argument(
        "--collective_timeout_seconds",
        type=float,
        default=1800.0,
        help="how long a worker waits for the others, and until a lost link is noticed; longer than a round",
    )
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


def _check_arguments(argv: Sequence[str]) -> None:
    """Refuses arguments that no reader of YAML should be given."""
    for argument in argv:
        if len(argument) > MOST_CHARACTERS or "\0" in argument:
            raise ConfigurationError(
                f"{argument[:40]!r}... has {len(argument)} characters; expected at most {MOST_CHARACTERS}, none of "
                "them zero: put long settings into a file for --config"
            )
        if "&" in argument:  # an alias may stand for what is too large to be written out
            value = argument.partition("=")[2] if argument.startswith("--") else argument
            try:
                parse_yaml(value)
            except NoSettings as error:
                raise ConfigurationError(f"{argument[:40]!r}... {error}") from error
            except yaml.YAMLError:  # text, such as a name
                pass


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
    path = Path(os.path.expanduser(value))
    if path.is_file():
        _check_yaml(path)
        return path
    preset = PRESETS / f"{value}.yaml"
    if PRESETS in preset.resolve().parents and preset.is_file():
        return preset
    if path.suffix in (".yaml", ".yml") or path.exists():
        raise ConfigurationError(f"--config {value} is no file; give a YAML file or a preset (fedsim list presets)")
    raise unknown_name("preset", value, [choice.name for choice in choices("presets")])


def _check_yaml(path: Path) -> None:
    """Refuses a file that is no mapping in YAML, naming file and line."""
    try:
        read_yaml(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path} line {mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigurationError(f"{where} is no YAML ({reason}); correct it, or give another --config") from error
    except NoSettings as error:
        raise ConfigurationError(f"{path} {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); give a YAML file to --config") from error


def _find_modules_here() -> None:
    """Lets a class path name a module of the current directory, under `fedsim` as under `python -m launch`.

    By its absolute path: jsonargparse changes into a file's folder while it reads it.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _refuse_server_keys(method: Method, argv: Sequence[str]) -> None:
    """Refuses an optimiser given by hand to a method that has none; presets and config.yaml spell the keys anyway."""
    given = [argument.partition("=")[0] for argument in argv if argument.startswith("--server.")]
    if method.assigns and given:
        raise ConfigurationError(
            f"{given[0]} is given, but {method.label} takes over what it aggregates and steps nothing; leave it out "
            "(a method that weighs clients has method.weighting)"
        )


def _refuse_error_feedback(method: Method, communication: CommunicationOptions) -> None:
    """Refuses what clients would owe to factors that are no more when they pay it."""
    if communication.error_feedback and not method.keeps_basis:
        raise ConfigurationError(
            f"communication.error_feedback is given, but {method.label} makes new factors in every round, to which what"
            " clients owe of the old ones cannot be added; leave it out, or choose another method"
        )


def _import_module(path: str) -> Callable[[Any], Any]:
    """Imports the class of client.module, which is made once there is a backbone."""
    try:
        made: Callable[[Any], Any] = import_path(path)
    except Exception as error:  # whatever stands in the user's file
        raise ConfigurationError(
            f"client.module {path!r} cannot be imported ({type(error).__name__}: {error}); give the class path of a "
            "LightningModule, such as my_package.my_file.MyModule"
        ) from error
    if not callable(made):
        raise ConfigurationError(f"client.module {path!r} is no class; give the class path of a LightningModule")
    return made


def _check_values(config: Namespace, parser: ArgumentParser) -> None:
    """Refuses a value where a file should have a group, and NaN and infinity for every key of every class."""
    keys = known_keys(parser)
    for group in {key.partition(".")[0] for key in keys if "." in key} - {*CHOSEN_BY_NAME}:
        if not isinstance(config[group], Namespace):
            raise unknown_key(group, keys)
    for key, value in flatten(config.as_dict()).items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ConfigurationError(f"{key} is {value}; expected a finite number")
