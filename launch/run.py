"""`fedsim run`: its settings are read and checked before anything heavy is imported."""

from collections.abc import Sequence

from rich.console import Console

from launch.configuration import read_settings


def main(argv: Sequence[str]) -> int:
    """Runs one experiment and says where its files are."""
    settings = read_settings(argv)
    from launch.experiment import run

    run(settings, Console())
    return 0
