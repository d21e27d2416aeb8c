"""`fedsim export`: takes a run's result away as plain transformers or PEFT folders."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import ConfigurationError
from launch.arguments import Arguments

if TYPE_CHECKING:
    from peft import PeftModel


def main(argv: Sequence[str]) -> int:
    """Copies a run's adapter, or writes its backbone with the adapter merged in."""
    parser = Arguments("export", "Writes a finished run's adapter, or the backbone with the adapter merged in.")
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--merge", action="store_true", help="write the whole backbone, loadable without PEFT")
    parser.add_argument("--out", type=Path, help="the folder to write; default RUN/merged with --merge")
    arguments = parser.parse_args(argv)
    adapter = arguments.run / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigurationError(f"{arguments.run} has no adapter/; give the directory of a finished run")
    out = arguments.out or (arguments.run / "merged" if arguments.merge else None)
    if out is None:
        raise ConfigurationError(f"the adapter is {adapter} already; give --out to copy it, or --merge")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(
            f"{out} is {'not empty' if out.is_dir() else 'a file'}; give a new folder: --out FOLDER"
        )
    model = _adapted(arguments.run) if arguments.merge else None
    try:
        if model is None:
            shutil.copytree(adapter, out, dirs_exist_ok=True)
        else:
            _merge(model, out)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"{out} cannot be written ({reason}); give another folder: --out FOLDER") from error
    print(out)
    return 0


def _adapted(run: Path) -> "PeftModel":
    """Loads the backbone that the run started from, or what the method made of it, and the run's adapter on it."""
    from peft import PeftModel

    from fedsim.backbone import quiet
    from launch.build import frozen_backbone
    from launch.configuration import read_settings

    settings = read_settings(["--config", str(run / "config.yaml")])
    if (run / "backbone").is_dir():
        settings = dataclasses.replace(settings, backbone_path=str(run / "backbone"))
    backbone = frozen_backbone(settings, settings.data.load())
    with quiet():
        return PeftModel.from_pretrained(backbone, str(run / "adapter"))


def _merge(model: "PeftModel", out: Path) -> None:
    """Writes backbone and adapter as one model."""
    from fedsim.adapters import merge_and_save

    merge_and_save(model, out)
