"""`fedsim demo`: the methods side by side on handwritten digits, then the table and the figure."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from fedsim.errors import ConfigurationError
from launch.arguments import Arguments
from launch.configuration import flatten, read_settings
from launch.experiment import run
from launch.reports.report import report

RUNS = {
    "lora": ("--method", "LoRA"),
    "flasc-1-4": ("--method", "FLASC", "--method.upload_density", "0.25"),
    "flasc-1-16": ("--method", "FLASC", "--method.upload_density", "0.0625"),
}


def main(argv: Sequence[str]) -> int:
    """Runs what is not there yet, then reports all."""
    parser = Arguments("demo", "Compares methods on handwritten digits: no network, no downloads.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per method and seed (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the runs go (default runs/demo)")
    arguments = parser.parse_args(argv)
    console = Console()
    folders = [
        _run_once(arguments.out / f"{name}-s{seed}", [*options, "--seed", str(seed)], console)
        for seed in arguments.seeds
        for name, options in RUNS.items()
    ]
    report(folders, ("accuracy", 0.9), arguments.out, console)
    return 0


def _run_once(folder: Path, options: list[str], console: Console) -> Path:
    """Runs one of them, goes on where it stopped, or keeps it where it is finished."""
    settings = read_settings([*options, "--evaluate_every_rounds", "5", "--run_dir", str(folder), "--resume", "auto"])
    if (folder / "summary.json").exists():
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if flatten(before) != flatten(settings.resolved):
            raise ConfigurationError(f"{folder} holds a run with other settings; remove it or give another --out")
        console.print(f"{settings.method.label}: {folder} is finished and stays", highlight=False, soft_wrap=True)
    else:
        run(settings, console)
    return folder
