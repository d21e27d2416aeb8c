"""Whether memory stays flat: the resident memory of one long run, round by round."""

import tempfile
from pathlib import Path

import psutil
from rich.console import Console

from launch.configuration import read_settings
from launch.experiment import run


class Watch(Console):
    """A console that notes resident memory whenever a run reports; it shows nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.resident_bytes: list[int] = []

    def print(self, *objects: object, **options: object) -> None:
        """Notes how much memory is held now."""
        self.resident_bytes.append(psutil.Process().memory_info().rss)


def memory_over(rounds: int) -> list[tuple[int, int]]:
    """Runs the preset digits for so many rounds.

    Args:
        rounds: a multiple of 10 tells most.

    Returns:
        (round, resident bytes) at every tenth of the run.
    """
    watch = Watch()
    every = max(1, rounds // 10)
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--rounds",
            str(rounds),
            "--evaluate_every_rounds",
            str(every),
            "--run_dir",
            str(Path(folder) / "run"),
        ]
        run(read_settings(options), watch)
    return [(number * every, held) for number, held in enumerate(watch.resident_bytes[: rounds // every + 1])]
