"""Full and read-only disks, clocks that jump, and a directory that two runs want.

    python -m launch.drills.disk

Disks are small file systems in memory, mounted and filled for real, which takes root; so do their remounts. Clocks jump
in the process of the run alone.
"""

import csv
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fedsim.checkpoint import newest_checkpoint
from launch.arguments import Arguments
from launch.drills import alone
from launch.drills.alone import Ended
from launch.drills.kill import COMMON
from launch.drills.outcome import bits

FULL = {"training": 25, "a checkpoint": 5, "metrics.csv": 3, "the curves": 4, "the adapter": 1}
"""In which stages the disk gets full, and when a run gets there for this time: behind its first checkpoint."""

NO_ROOT = 2
HOUR, DAY = 3600.0, 86400.0


def main(argv: Sequence[str] | None = None) -> int:
    """Goes through all parts, and prints a line each; 1 where any promise is broken, 2 where some could not be done."""
    parser = Arguments("drill", "Lets disks get full and clocks jump; every run must end as if nothing had happened.")
    parser.parse_args(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole"
        _must(whole, "undisturbed")
        broken = sum(_report(part, do, whole, folder) for part, do in parts().items())
        mounted = may_mount(folder)
        if mounted:
            broken += sum(_report(part, do, whole, folder) for part, do in disk_parts().items())
    if not mounted:
        print("full and read-only disks were left out: to mount them takes root", flush=True)
    print(f"{broken} promises broken")
    return 1 if broken else 0 if mounted else NO_ROOT


def parts() -> dict[str, Callable[[Path, Path], list[str]]]:
    """What takes no root: functions of the undisturbed run and a folder, which return what was not as promised."""
    return {
        "clock an hour back, then a day ahead": partial(clock, [(12, {4: -HOUR, 8: DAY})]),
        "clock an hour back at the resume": partial(clock, [(6, {}), (12, {0: -HOUR})]),
        "clock a day ahead before the resume": partial(clock, [(6, {0: DAY}), (12, {})]),
        "directory used twice": twice,
    }


def disk_parts() -> dict[str, Callable[[Path, Path], list[str]]]:
    """What takes root, likewise."""
    return {
        "small disk, full in a checkpoint": small,
        **{f"disk full before {stage}": partial(full, stage, count) for stage, count in FULL.items()},
        "read-only directory": read_only,
    }


def clock(turns: Sequence[tuple[int, dict[int, float]]], whole: Path, folder: Path) -> list[str]:
    """Runs in turns, in each of which the clock jumps.

    Args:
        turns: up to which round, and by how much the clock is off after which rounds.
        whole: an undisturbed run.
        folder: for the run.
    """
    run = folder / "run"
    ended = [_run(run, partial(alone.jump, after), "--rounds", str(rounds)) for rounds, after in turns]
    wrong = [f"ended with {one.status}: {one.errors}" for one in ended if one.status != 0]
    if wrong:
        return wrong
    seconds = [float(row["seconds"]) for row in _rows(run)]
    if seconds != sorted(seconds) or seconds[0] < 0:
        wrong.append(f"seconds in metrics.csv go back: {seconds}")
    return [*wrong, *_differs(run, whole), *_curves_out_of_order(run)]


def twice(whole: Path, folder: Path) -> list[str]:
    """Starts a run in a directory where one goes on."""
    run, held = folder / "run", folder / "held"
    first = alone.start(folder / "first", partial(alone.hold, held), *_command(run))
    end = time.monotonic() + alone.SECONDS
    while not held.exists() and time.monotonic() < end:
        time.sleep(0.05)
    second = _run(run, alone.nothing)
    held.unlink(missing_ok=True)
    ended = first.end()
    wrong = [] if ended.status == 0 else [f"the first ended with {ended.status}: {ended.errors}"]
    return [*wrong, *_not_refused(second, 2, "is in use by another run"), *_differs(run, whole)]


def small(whole: Path, folder: Path) -> list[str]:
    """Runs on a disk that has room for two checkpoints and a half."""
    checkpoint = sum(path.stat().st_size for path in newest_folder(whole).iterdir())
    with mounted(folder / "disk", checkpoint * 5 // 2 + 100_000) as disk:
        return _goes_on_with_room(_run(disk / "run", alone.nothing), disk, whole)


def full(stage: str, count: int, whole: Path, folder: Path) -> list[str]:
    """Runs on a disk that something else fills."""
    with mounted(folder / "disk", 64_000_000) as disk:
        return _goes_on_with_room(_run(disk / "run", partial(alone.fill, stage, count, disk / "ballast")), disk, whole)


def read_only(whole: Path, folder: Path) -> list[str]:
    """Starts a new run, and goes on with one, where nothing may be written."""
    with mounted(folder / "disk", 64_000_000) as disk:
        wrong = [] if (ended := _run(disk / "run", alone.nothing, "--rounds", "6")).status == 0 else [str(ended)]
        _mount("-o", "remount,ro", str(disk))
        before = _contents(disk)
        for run in (disk / "new", disk / "run"):
            wrong += _not_refused(_run(run, alone.nothing), 2, "cannot be written")
        wrong += [] if _contents(disk) == before else ["something was written"]
        _mount("-o", "remount,rw", str(disk))
        wrong += [] if (ended := _run(disk / "run", alone.nothing)).status == 0 else [str(ended)]
        return [*wrong, *_differs(disk / "run", whole)]


def _goes_on_with_room(ended: Ended, disk: Path, whole: Path) -> list[str]:
    """Holds a run whose disk got full against the promise, and lets it go on on a larger one."""
    run = disk / "run"
    wrong = _not_refused(ended, 1, "No space left on device")
    checkpoint, damaged = newest_checkpoint(run / "checkpoint")
    if checkpoint is None or damaged:
        wrong.append(f"the last checkpoint is not whole: {damaged}")
    _mount("-o", "remount,size=256m", str(disk))
    again = _run(run, alone.nothing)
    if again.status != 0 or again.errors:
        return [*wrong, f"with room it ended with {again.status}: {again.errors}"]
    return [*wrong, *_differs(run, whole), *_curves_out_of_order(run)]


def _not_refused(ended: Ended, status: int, says: str) -> list[str]:
    """What is not as promised of an end with one line."""
    one_line = len(ended.errors) == 1 and ended.errors[0].startswith("fedsim: ") and says in ended.errors[0]
    if ended.status == status and one_line:
        return []
    return [f"ended with {ended.status} and {len(ended.errors)} lines: {ended.errors[-3:]}"]


def _differs(run: Path, whole: Path) -> list[str]:
    return [] if bits(run) == bits(whole) else ["DIFFERS from the undisturbed run"]


def _curves_out_of_order(run: Path) -> list[str]:
    """Reads TensorBoard's files: every evaluation must be there once, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a run that went on is no news here
    events = EventAccumulator(str(run))
    events.Reload()
    read = [event.step for event in events.Scalars("eval/accuracy")]
    expected = [int(row["round"]) for row in _rows(run)]
    return [] if read == expected else [f"TensorBoard reads rounds {read}, expected {expected}"]


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def newest_folder(run: Path) -> Path:
    """Returns where the newest checkpoint of a run stands."""
    return max((run / "checkpoint").glob("round-*"))


def may_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    if os.geteuid() != 0:
        return False
    try:
        with mounted(folder / "probe", 4096):
            return True
    except RuntimeError:  # root of a container that may not
        return False


@contextmanager
def mounted(place: Path, size: int) -> Iterator[Path]:
    """Mounts a file system in memory while the context lasts.

    Args:
        place: the directory to make for it.
        size: in bytes.

    Raises:
        RuntimeError: it cannot be mounted.
    """
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def _report(part: str, do: Callable[[Path, Path], list[str]], whole: Path, folder: Path) -> bool:
    """Does one part in a folder of its own, and says whether a promise was broken."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        wrong = do(whole, Path(name))
    said = f"BROKEN: {'; '.join(wrong)}" if wrong else "as promised"
    print(f"{part:<38} {said} ({time.monotonic() - started:.0f} s)", flush=True)
    return bool(wrong)


def _must(run: Path, what: str) -> None:
    ended = _run(run, alone.nothing)
    if ended.status != 0:
        raise RuntimeError(f"the {what} run failed: {ended.errors}")


def _run(run: Path, spoil: Callable[[], object], *options: str) -> Ended:
    # Its words stand beside the disk, not on it.
    said = Path(tempfile.gettempdir()) / f".drill-{os.getpid()}.said"
    try:
        return alone.start(said, spoil, *_command(run), *options).end()
    finally:
        said.unlink(missing_ok=True)


def _command(run: Path) -> tuple[str, ...]:
    return ("run", *COMMON, "--run_dir", str(run), "--resume", "auto")


if __name__ == "__main__":
    sys.exit(main())
