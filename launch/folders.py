"""Where the backbone and the data of a configuration lie."""

import os
from pathlib import Path

from jsonargparse import Namespace

from fedsim.errors import ConfigurationError
from launch.registry import BACKBONES


def resolve_folders(config: Namespace) -> None:
    """Makes the folders of backbone and data absolute, so that config.yaml repeats the run from anywhere.

    An embedded backbone keeps its name, even beside a folder of that name. Data that want a tokenizer and name none
    get the backbone's.

    Args:
        config: of `fedsim run`; its paths are replaced.

    Raises:
        ConfigurationError: the backbone is missing, or named as nothing that there is.
    """
    if config.backbone.path is None:
        raise ConfigurationError("backbone.path is missing; give a folder, a hub id (owner/name), or glyphs")
    config.backbone.path = _named_backbone(config.backbone.path)
    arguments = config.data.get("init_args", {})
    if "tokenizer" in arguments and arguments["tokenizer"] is None:
        arguments["tokenizer"] = loadable(config.backbone.path)
    for name in ("path", "train_path", "test_path", "cache", "tokenizer"):
        if isinstance(arguments.get(name), str):
            arguments[name] = _absolute(arguments[name])


def _named_backbone(path: str) -> str:
    """Resolves a local folder; a hub id stays as it is, and an embedded name too, so that a checkout can be moved."""
    if path in _embedded():
        return path
    absolute = _absolute(path)
    if "/" not in absolute:
        raise ConfigurationError(
            f"backbone.path {path!r} is no folder here, no hub id (owner/name) and no embedded backbone "
            f"({', '.join(_embedded())}); give a folder: --backbone.path FOLDER"
        )
    return absolute


def loadable(path: str) -> str:
    """The folder of an embedded backbone; anything else stays as it is."""
    return str(BACKBONES / path) if path in _embedded() else path


def _embedded() -> list[str]:
    """The names of the backbones that fedsim brings along."""
    return sorted(folder.name for folder in BACKBONES.iterdir() if folder.is_dir())


def _absolute(path: str) -> str:
    """Resolves an existing path, or one that starts like a path; anything else stays as it is."""
    local = Path(os.path.expanduser(path))
    return str(local.resolve()) if local.exists() or path.startswith(("/", ".", "~")) else path
