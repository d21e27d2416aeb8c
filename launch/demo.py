"""`fedsim demo`: the methods side by side on handwritten digits, then the table and the figure."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import yaml
from rich.console import Console

from fedsim.errors import ConfigurationError
from fedsim.options import require
from launch.arguments import Arguments
from launch.configuration import flatten, read_settings
from launch.experiment import run
from launch.reports.report import report

RUNS = {
    "lora": ("--method", "LoRA"),
    "flasc-1-4": ("--method", "FLASC", "--method.upload_density", "0.25"),
    "flasc-1-16": ("--method", "FLASC", "--method.upload_density", "0.0625"),
    "sparse-adapter": ("--method", "SparseAdapter", "--method.density", "0.25"),
    "adapter-lth": ("--method", "AdapterLTH", "--method.prune_fraction", "0.02"),
}


def main(argv: Sequence[str]) -> int:
    """Runs what is not there yet, then reports all."""
    parser = Arguments("demo", "Compares methods on handwritten digits: no network, no downloads.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per method and seed (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the runs go (default runs/demo)")
    cores = min(2, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=cores, help=f"runs at a time, a core each (default {cores} here)")
    arguments = parser.parse_args(argv)
    require("--jobs", arguments.jobs, arguments.jobs >= 1, "1 or more")
    runs = [
        (arguments.out / f"{name}-s{seed}", [*options, "--seed", str(seed)])
        for seed in arguments.seeds
        for name, options in RUNS.items()
    ]
    if arguments.jobs == 1:
        folders = [_run_once(folder, options) for folder, options in runs]
    else:
        # Fresh processes, as one that has threads may not be forked.
        with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
            waiting = [pool.submit(_run_once, folder, options) for folder, options in runs]
            folders = [run.result() for run in waiting]
    report(folders, ("accuracy", 0.9), arguments.out, Console())
    return 0


def _run_once(folder: Path, options: list[str]) -> Path:
    """Runs one of them, goes on where it stopped, or keeps it where it is finished."""
    console = Console() if multiprocessing.parent_process() is None else Console(force_terminal=False)
    settings = read_settings([*options, "--evaluate_every_rounds", "5", "--run_dir", str(folder), "--resume", "auto"])
    if (folder / "summary.json").exists():
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if flatten(before) != flatten(settings.resolved):
            raise ConfigurationError(f"{folder} holds a run with other settings; remove it or give another --out")
        console.print(f"{settings.method.label}: {folder} is finished and stays", highlight=False, soft_wrap=True)
    else:
        run(settings, console)
    return folder
