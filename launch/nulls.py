"""Null where a key needs a value: jsonargparse refuses it on the command line, but not in a file, nor for a class."""

from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from fedsim.errors import ConfigurationError
from launch.explain import CHOSEN_BY_NAME, import_path, plainly


def refuse_nulls(config: Namespace, parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Refuses null for every key whose type does not have it.

    Args:
        config: what was read.
        parser: that read it.
        arguments: of which it read it.

    Raises:
        Exception: of jsonargparse, for a key of the run; for `explain`.
        ConfigurationError: for a key of a method, data set or partitioner.
    """
    given = config.clone()
    for name in CHOSEN_BY_NAME:
        chosen = given.pop(name)
        _refuse_null_arguments(name, chosen)
    nulls = [f"--{key}=null" for key, value in given.items() if value is None]
    parser.parse_args([*arguments, *nulls])


def _refuse_null_arguments(name: str, chosen: Any) -> None:
    """The same for the arguments of a class, and of the classes among these."""
    if not isinstance(chosen, Namespace) or "class_path" not in chosen:
        return
    arguments = vars(chosen.get("init_args") or Namespace())
    hints = _hints(chosen.class_path)
    for argument, value in arguments.items():
        hint = hints.get(argument, Any)
        if value is None and hint is not Any and NoneType not in (hint, *get_args(hint)):
            raise ConfigurationError(f"{name}.{argument} is None; expected {plainly(str(hint))}")
        _refuse_null_arguments(f"{name}.{argument}", value)


def _hints(path: str) -> dict[str, Any]:
    """The types of a class's arguments; none where a user's module imports them for type checkers alone."""
    try:
        return get_type_hints(import_path(path).__init__)
    except NameError:
        return {}
