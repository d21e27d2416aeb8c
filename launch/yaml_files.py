"""YAML that somebody gave, read in bounds: no more text, values and levels than settings can have."""

from pathlib import Path
from typing import Any

import yaml

MOST_CHARACTERS = 2**16
MOST_VALUES = 10_000
MOST_LEVELS = 32


class NoSettings(ValueError):
    """YAML, but not of settings; the message is what it holds or has."""


def read_yaml(path: Path) -> dict[Any, Any]:
    """Reads a file of settings.

    Args:
        path: the file.

    Returns:
        What it holds: keys with values.

    Raises:
        OSError: it cannot be read.
        yaml.YAMLError: it is no YAML.
        UnicodeDecodeError: it is no text.
        NoSettings: it holds something else than keys with values, or more than settings can have.
    """
    with path.open(encoding="utf-8") as file:
        settings = parse_yaml(file.read(MOST_CHARACTERS + 1))
    if not isinstance(settings, dict):
        held = "nothing" if settings is None else "a list" if isinstance(settings, list) else "a single value"
        raise NoSettings(f"holds {held}; expected keys with values, such as rounds: 100")
    return settings


def parse_yaml(text: str) -> Any:
    """Reads a text.

    Raises:
        yaml.YAMLError: it is no YAML.
        NoSettings: it is more than settings can have.
    """
    if len(text) > MOST_CHARACTERS:
        raise NoSettings(f"has more than {MOST_CHARACTERS} characters; expected settings")
    try:
        found = yaml.safe_load(text)
    except RecursionError as error:
        raise NoSettings(f"has more than {MOST_LEVELS} levels; expected settings") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # it only looks right
        raise NoSettings(f"has a value that cannot be read ({error}); correct it") from error
    _require_small(found)
    return found


def _require_small(found: object) -> None:
    """Counts an alias as often as it stands somewhere: readers write it out."""
    left, open_ends = MOST_VALUES, [(found, 0)]
    while open_ends:
        value, level = open_ends.pop()
        left -= 1
        if left < 0 or level > MOST_LEVELS:
            raise NoSettings(f"has more than {MOST_VALUES} values or {MOST_LEVELS} levels; expected settings")
        if isinstance(value, dict | list | tuple | set):
            inside = [*value, *value.values()] if isinstance(value, dict) else list(value)
            open_ends += [(one, level + 1) for one in inside[: left + 1]]
