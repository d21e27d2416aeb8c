"""`fedsim report`: its arguments."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.arguments import Arguments
from launch.reports.report import parse_target, report


def main(argv: Sequence[str]) -> int:
    """Writes table and figure of finished runs."""
    parser = Arguments("report", "Table and figure of finished runs: a metric against uploaded bytes.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or directories that hold some")
    parser.add_argument("--target", help="a metric and the value to reach, as accuracy=0.8")
    parser.add_argument("--out", type=Path, help="where to write; default: the runs' common parent")
    arguments = parser.parse_args(argv)
    target = None if arguments.target is None else parse_target(arguments.target)
    report(arguments.runs, target, arguments.out, Console())
    return 0
