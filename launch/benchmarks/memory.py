"""Whether a long run stays as small as it was: the memory and the open files of one real run, with all its files."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from launch.configuration import read_settings
from launch.experiment import run

READINGS = 100
"""How often a run is evaluated, and looked at."""


@dataclass(frozen=True)
class Reading:
    """What the process held when an evaluation was reported.

    Attributes:
        round: after so many.
        resident_bytes: of memory.
        open_files: descriptors, sockets and pipes among them.
    """

    round: int
    resident_bytes: int
    open_files: int


class Watch(Console):
    """A console that takes a reading whenever a run reports; it shows nothing.

    Args:
        every: rounds between reports.
    """

    def __init__(self, every: int) -> None:
        super().__init__(quiet=True)
        self.readings: list[Reading] = []
        self._every = every

    def print(self, *objects: object, **options: object) -> None:
        """Takes a reading."""
        process = psutil.Process()
        held = process.memory_info().rss
        self.readings.append(Reading(len(self.readings) * self._every, held, process.num_fds()))


def memory_over(rounds: int) -> list[Reading]:
    """Runs the preset digits for so many rounds, with the least of clients that can be packed.

    Args:
        rounds: a multiple of 100 tells most.

    Returns:
        A reading at every evaluation.
    """
    every = max(1, rounds // READINGS)
    watch = Watch(every)
    with tempfile.TemporaryDirectory() as folder:
        work = ["--cohort_size", "2", "--client.pack", "2", "--client.max_steps", "1", "--client.batch_size", "4"]
        length = ["--rounds", str(rounds), "--evaluate_every_rounds", str(every)]
        run(read_settings([*work, *length, "--run_dir", str(Path(folder) / "run")]), watch)
    return watch.readings[: rounds // every + 1]


def growth(readings: Sequence[Reading]) -> tuple[float, int]:
    """Compares the end of a run with its start.

    Args:
        readings: in order, at least one. The first tenth of them is warm-up and counts for nothing.

    Returns:
        By how many per cent the median memory of the last tenth is above that of the first tenth after warm-up, and by
        how many the open files of the last reading are above the first one's after warm-up.
    """
    tenth = max(1, len(readings) // 10)
    warm = readings[tenth:] or readings
    first, last = (statistics.median(one.resident_bytes for one in part) for part in (warm[:tenth], warm[-tenth:]))
    return 100 * (last / first - 1), warm[-1].open_files - warm[0].open_files
