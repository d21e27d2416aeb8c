"""What jsonargparse finds wrong with a configuration, said in one line: what was given, expected, and to do."""

import argparse
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentParser

from data_partitions.dataset import DataSet
from data_partitions.errors import DataError
from data_partitions.partition import Partitioner
from fedsim.errors import ConfigurationError, unknown_name
from fedsim.method import Method
from launch.registry import choices

CHOSEN_BY_NAME: dict[str, tuple[str, type]] = {
    "method": ("methods", Method),
    "data": ("datasets", DataSet),
    "partition": ("partitioners", Partitioner),
}
"""Keys that take a class by name: the kind that `fedsim list` shows, and what it must be."""

_FLAGS = ("--debug", "--help", "--print_config")
_WORDS = {
    r"\bint\b": "a whole number",
    r"\bfloat\b": "a number",
    r"\bbool\b": "true or false",
    r"\blist(\[\w+\])?|\btuple\b": "a list in brackets",
    r"\bstr\b": "text",
    r"\bNoneType\b": "null",
}
"""How types are called in messages."""

_LISTED = "fedsim run --help lists every key"


def explain(error: BaseException, parser: ArgumentParser, argv: Sequence[str]) -> ConfigurationError:
    """Turns jsonargparse's account of what is wrong into one line with what to do."""
    causes = list(_causes(error))
    for cause in causes:  # what a constructor said itself is the best account
        if isinstance(cause, ConfigurationError | DataError):
            return ConfigurationError(str(cause))
    text = str(error)
    key = _key_of(text)
    answer = _no_such_key(text, parser) or _nothing_given(text, key, argv) or _no_such_choice(text, key, causes[-1])
    if answer := answer or _wrong_type(text, key, parser):
        return answer
    made = re.search(r"class_path='([^']+)'", text)
    what = f"{made[1]}: " if made else f"{key}: " if key else ""
    kind = "" if isinstance(causes[-1], argparse.ArgumentError) else f"{type(causes[-1]).__name__}: "
    return ConfigurationError(f"{what}{kind}{causes[-1]}; {_LISTED}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _key_of(text: str) -> str:
    """Returns the key that an account is about: its parts stand apart where one class holds another."""
    key = ""
    for part in re.findall(r'Parser key "([^"]+)"', text):
        key = part if not key or f"{part}.".startswith(f"{key}.") else f"{key}.{part}"
    return key


def _no_such_key(text: str, parser: ArgumentParser) -> ConfigurationError | None:
    """Answers a key that nothing goes by, at the root, in a group, or of a class that was chosen."""
    if match := re.search(r"unrecognized arguments: ([^\s=]+)", text, re.IGNORECASE):
        if not match[1].startswith("-"):
            return ConfigurationError(f"{match[1]} stands without a key; give --KEY VALUE, {_LISTED}")
        return unknown_key(match[1].lstrip("-"), known_keys(parser))
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return unknown_key(f"{match[1]}.{match[2]}", known_keys(parser))
    if match := re.search(r"^Option '([^']+)' is not accepted|Key '([^']+)' is not expected", text):
        return unknown_key(match[1] or match[2], known_keys(parser))
    if match := re.search(r"given class_path '([^']+)':\s+Option '([^']+)' is not accepted", text):
        cls = import_path(match[1])
        known = ("class_path", "init_args") if inspect.isabstract(cls) or cls is Method else _parameters(cls)
        if not known:
            return ConfigurationError(f"unknown key of {cls.__name__} {match[2]!r}; it takes none, leave it out")
        return unknown_name(f"key of {cls.__name__}", match[2], known)
    return None


def unknown_key(given: str, keys: Iterable[str]) -> ConfigurationError:
    """Looks for near matches of a key in its own group, and without one in every group."""
    split = [(key, *key.rpartition(".")[::2]) for key in keys]
    group, _, name = given.rpartition(".")
    if group and (siblings := [last for _, within, last in split if within == group]):
        return unknown_name(f"key of {group}", name, siblings)
    if inside := [key for key, within, _ in split if within == given]:
        return ConfigurationError(f"{given} is a group of keys; give {', '.join(inside)}")
    near = get_close_matches(name, {last for *_, last in split}, n=3, cutoff=0.65)
    if found := [key for match in near for key, _, last in split if last == match]:
        return ConfigurationError(f"unknown key {given!r}; did you mean {' or '.join(found)}?")
    return unknown_name("key", given, {key.partition(".")[0] for key, *_ in split})


def _nothing_given(text: str, key: str, argv: Sequence[str]) -> ConfigurationError | None:
    """Answers what is missing: a method, data set or partitioner, a key that it needs, or the value of a key."""
    if match := re.search(r"arguments are required: ([\w, ]+)$", text, re.MULTILINE):
        names = [f"{key}.{name}" if key else name for name in match[1].split(", ")]
        if key:
            return ConfigurationError(f"{', '.join(names)} missing; give --{' VALUE and --'.join(names)} VALUE")
        shown = " and ".join(f"--{name} NAME (fedsim list {CHOSEN_BY_NAME[name][0]})" for name in names)
        return ConfigurationError(f"{', '.join(names)} missing; give {shown}, or a preset first (--config digits)")
    if not (match := re.search(r"argument (--\S+): expected one argument", text)):
        return None
    # argparse names only the part before the first dot.
    pairs = zip(argv, [*argv[1:], "--"], strict=True)
    bare = (name for name, value in pairs if name.startswith("--") and "=" not in name and value.startswith("--"))
    option = next((option for option in bare if option not in _FLAGS), match[1])
    return ConfigurationError(f"{option} has no value; give {option} VALUE, {_LISTED}")


def _no_such_choice(text: str, key: str, cause: BaseException) -> ConfigurationError | None:
    """Answers a method, data set or partitioner that is not there."""
    if key not in CHOSEN_BY_NAME or not (match := re.search(r"Given value: (.+)", text)):
        return None
    kind, base = CHOSEN_BY_NAME[key]
    inside = re.search(r"'class_path'(?:: |, val=)'([^']+)'", match[1])
    given = inside[1] if inside else match[1].strip()
    shows = f"fedsim list {kind} shows what there is"
    if "not correspond to a subclass" in text:
        return ConfigurationError(f"{key} {given} is no {base.__name__} of {base.__module__}; {shows}")
    if "." in given:
        reason = f"{type(cause).__name__}: {cause}"
        return ConfigurationError(f"{key} {given} cannot be imported ({reason}); correct the class path, {shows}")
    return unknown_name(kind.removesuffix("s"), given, [choice.name for choice in choices(kind)])


def _wrong_type(text: str, key: str, parser: ArgumentParser) -> ConfigurationError | None:
    """Answers a value that the key cannot have."""
    if not key:
        return None
    inner = text.rpartition("Parser key")[2]
    if "Unable to load config" in text:
        return unknown_key(key.partition(".")[0], known_keys(parser))
    if (union := re.search(r"Subtypes: \[(.+)\]", inner)) and (given := re.search(r"Given value: (.*)", inner)):
        return ConfigurationError(f"{key} is {given[1]}; expected {plainly(union[1])}")
    if match := re.search(r"Expected an? (.+?)\.? Got value: (.*)", inner):
        return ConfigurationError(f"{key} is {match[2]}; expected {plainly(match[1])}")
    return None


def plainly(expected: str) -> str:
    """Says a type in words."""
    text = re.sub(r"(?:typing\.)?Literal\[(.+?)\]", lambda match: f"one of {match[1]}".replace("'", ""), expected)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    for pattern, words in _WORDS.items():
        text = re.sub(pattern, words, text)
    return " or ".join(text.rsplit(", ", 1)) if text.endswith(", null") else text


def known_keys(parser: ArgumentParser) -> list[str]:
    """Lists every key there is, with those of every method, data set and partitioner."""
    keys = {"print_config", *parser.get_defaults().keys()}
    for name, (_, base) in CHOSEN_BY_NAME.items():
        classes: list[type] = base.__subclasses__()
        keys |= {f"{name}.{parameter}" for cls in classes for parameter in _parameters(cls)}
    return sorted(keys)


def _parameters(cls: type) -> list[str]:
    return list(inspect.signature(cls).parameters)


def import_path(path: str) -> Any:
    """Imports what a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
