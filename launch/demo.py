"""`fedsim demo`: the methods side by side on handwritten digits, then the table and the figure."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsim.options import require
from launch.arguments import Arguments
from launch.sweeps.definition import NAME, Sweep
from launch.sweeps.plan import plan_runs
from launch.sweeps.results import conclude
from launch.sweeps.runner import run_all

RUNS: list[dict[str, Any]] = [
    {NAME: "lora", "method": "LoRA"},
    {NAME: "flasc-1-4", "method": "FLASC", "method.upload_density": 0.25},
    {NAME: "flasc-1-16", "method": "FLASC", "method.upload_density": 0.0625},
    {NAME: "sparse-adapter", "method": "SparseAdapter", "method.density": 0.25},
    {NAME: "adapter-lth", "method": "AdapterLTH", "method.prune_fraction": 0.02},
]
KEYS: Mapping[str, Any] = {"evaluate_every_rounds": 5}


def main(argv: Sequence[str]) -> int:
    """Runs what is not there yet, then reports all: a sweep without a file."""
    parser = Arguments("demo", "Compares methods on handwritten digits: no network, no downloads.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per method and seed (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the runs go (default runs/demo)")
    cores = min(2, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=cores, help=f"runs at a time, a core each (default {cores} here)")
    arguments = parser.parse_args(argv)
    require("--jobs", arguments.jobs, arguments.jobs >= 1, "1 or more")
    runs = plan_runs(Sweep(keys=KEYS, runs=RUNS, seeds=arguments.seeds), [], arguments.out)
    console = Console()
    outcomes = run_all(runs, arguments.jobs, console, arguments.debug)
    return conclude(outcomes, {"target": "accuracy=0.9"}, arguments.out, console)
