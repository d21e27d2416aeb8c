"""What there is to choose from, by bare name: found by reading the files of the packages, not by importing them."""

import ast
import importlib
import re
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
PRESETS = Path(__file__).resolve().parent / "presets"
SWEEPS = PRESETS / "paper"
BACKBONES = Path(__file__).resolve().parent / "backbones"

_KINDS = {
    "methods": ("methods", "Method"),
    "datasets": ("data_partitions/datasets", "DataSet"),
    "partitioners": ("data_partitions/partitioners", "Partitioner"),
}


@dataclass(frozen=True)
class Choice:
    """One thing to choose.

    Attributes:
        name: what the command line calls it.
        source: where it comes from: paper, package.
        phrase: what it is, in a line.
        module: where it is defined; empty for a preset.
    """

    name: str
    source: str
    phrase: str
    module: str = ""


def choices(kind: str) -> list[Choice]:
    """Lists methods, datasets, partitioners, presets or sweeps, by name."""
    if kind in ("presets", "sweeps"):
        found = [_preset(path) for path in (PRESETS if kind == "presets" else SWEEPS).glob("*.yaml")]
    else:
        folder, base = _KINDS[kind]
        found = [choice for path in (_ROOT / folder).glob("*.py") for choice in _classes(path, base)]
    return sorted(found, key=lambda choice: choice.name.lower())


def import_choices() -> None:
    """Imports every module that holds a choice, so that the command line knows it by its bare name."""
    for kind in _KINDS:
        for choice in choices(kind):
            importlib.import_module(choice.module)


def _classes(path: Path, base: str) -> list[Choice]:
    """Reads the classes of one file that fill a contract."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    found = []
    for node in nodes:
        if isinstance(node, ast.ClassDef) and base in [b.id for b in node.bases if isinstance(b, ast.Name)]:
            text = ast.get_docstring(node) or ""
            source = re.search(r"^Source: (.+?)\.?(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
            phrase = text.partition("\n")[0].rstrip(".")
            found.append(Choice(node.name, " ".join(source[1].split()) if source else "", phrase, module))
    return found


def _preset(path: Path) -> Choice:
    """Reads a preset's first two lines: what it is, and its source."""
    lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()[:2]]
    name = path.relative_to(PRESETS).with_suffix("").as_posix()
    return Choice(name, lines[1].removeprefix("Source:").strip(" ."), lines[0].rstrip("."))
