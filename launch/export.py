"""`fedsim export`: takes a run's result away as plain transformers or PEFT folders."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fedsim.errors import ConfigurationError
from launch.arguments import Arguments


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
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"--out {out} is not empty; give a new folder")
    if arguments.merge:
        _merge(arguments.run, out)
    else:
        shutil.copytree(adapter, out, dirs_exist_ok=True)
    print(out)
    return 0


def _merge(run: Path, out: Path) -> None:
    """Loads the backbone that the run started from, its adapter on it, and writes them as one."""
    from peft import PeftModel

    from fedsim.adapters import merge_and_save
    from fedsim.backbone import quiet
    from launch.build import frozen_backbone
    from launch.configuration import read_settings

    settings = read_settings(["--config", str(run / "config.yaml")])
    backbone = frozen_backbone(settings, settings.data.load())
    with quiet():
        model = PeftModel.from_pretrained(backbone, str(run / "adapter"))
    merge_and_save(model, out)
