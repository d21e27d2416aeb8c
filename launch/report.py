"""`fedsim report`: its arguments."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedsim.options import require
from launch.arguments import Arguments
from launch.reports.against import AGAINST
from launch.reports.findings import parse_target
from launch.reports.report import Options, report


def main(argv: Sequence[str]) -> int:
    """Writes tables and figures of finished runs."""
    write(read_arguments(argv), Console())
    return 0


def read_arguments(argv: Sequence[str]) -> Namespace:
    """Reads and checks what a report is to be.

    Raises:
        ConfigurationError: it cannot be.
    """
    parser = Arguments("report", "Tables and figures of finished runs: a metric against the bytes that were sent.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or directories that hold some")
    parser.add_argument("--target", help="a metric and the value to reach, as accuracy=0.8")
    parser.add_argument(
        "--budget", type=float, help="MB (10^6 bytes) of uploads: also tells the metric when they are spent"
    )
    parser.add_argument(
        "--against", choices=list(AGAINST), default="upload", help="what the curves are drawn against (default upload)"
    )
    parser.add_argument(
        "--heat_map",
        nargs=2,
        metavar="KEY",
        help="two numeric settings, as method.lora_rank method.upload_density: the final metric by both, and its "
        "Pareto front against upload",
    )
    parser.add_argument("--html", action="store_true", help="also one page that needs nothing beside it, report.html")
    parser.add_argument("--out", type=Path, help="where to write; default: the runs' common parent")
    arguments = parser.parse_args(argv)
    arguments.target = None if arguments.target is None else parse_target(arguments.target)
    if arguments.budget is not None:
        require("--budget", arguments.budget, 0 < arguments.budget < float("inf"), "megabytes above 0")
    return arguments


def write(arguments: Namespace, console: Console) -> None:
    """Writes what `read_arguments` read."""
    budget_bytes = None if arguments.budget is None else arguments.budget * 1e6
    keys = tuple(arguments.heat_map) if arguments.heat_map else None
    options = Options(budget_bytes=budget_bytes, against=arguments.against, heat_map=keys, html=arguments.html)
    report(arguments.runs, arguments.target, arguments.out, console, options)
