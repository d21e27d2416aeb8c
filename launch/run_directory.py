"""The run directory: which one, who may write there, and whether what stands in it can go on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout

from data_partitions.partition import Partition
from fedsim.checkpoint import Checkpoint, newest_checkpoint
from fedsim.errors import ConfigurationError
from fedsim.reporting import write_atomically
from launch.configuration import flatten, save_yaml
from launch.reports.results import WITHOUT_EFFECT
from launch.stopping import DONE, PREEMPTED
from launch.yaml_files import read_yaml

MAY_DIFFER = ("rounds", *WITHOUT_EFFECT)
"""Keys that a resumed run may change, besides those that config.yaml does not hold: rounds may grow."""


class RunDirectory:
    """A directory that this process alone writes to, while the context lasts.

    Attributes:
        path: the directory.
        checkpoint: where the run goes on; None for a new run.
        notes: what the user should know: damaged checkpoints that were passed over.
    """

    def __init__(self, path: Path, lock: FileLock, checkpoint: Checkpoint | None, notes: list[str]) -> None:
        self.path = path
        self.checkpoint = checkpoint
        self.notes = notes
        self._lock = lock

    @classmethod
    def open(cls, given: Path | None, default_name: str, resume: bool, resolved: dict[str, Any]) -> "RunDirectory":
        """Makes a new run directory, or opens one whose run stopped.

        Args:
            given: the directory asked for; None takes the first free runs/<default_name>-<n>.
            default_name: method, data and seed.
            resume: whether to go on where a run stopped.
            resolved: the settings, which must be those of the run that stopped.

        Raises:
            ConfigurationError: the directory is in use, holds a finished run, an unfinished one without resume,
                something else, or a run with other settings.
        """
        path = _first_free(default_name) if given is None else given
        with _writable(path):
            if path.exists() and not path.is_dir():
                raise ConfigurationError(f"run_dir {path} is a file; give a directory")
            refuse_foreign(path)
            lock = _lock(path)
        try:
            held = refuse_foreign(path)
            if held and not resume:
                state = "a finished run" if "summary.json" in held else "an unfinished run (go on with --resume auto)"
                raise ConfigurationError(f"run_dir {path} holds {state}; choose another run_dir")
            checkpoint, notes = _resumable(path, resolved) if held else (None, [])
        except BaseException:
            lock.release()
            raise
        return cls(path, lock, checkpoint, notes)

    def begin(self, resolved: dict[str, Any], partitions: Mapping[str, Partition | None] | None = None) -> None:
        """Writes the settings, once everything was checked: from here on what stood here before is gone on with.

        Args:
            resolved: the settings.
            partitions: who holds which examples, by the names of their files.

        Raises:
            ConfigurationError: the directory cannot be written.
        """
        with _writable(self.path):
            write_atomically(self.path / "config.yaml", save_yaml(resolved))
            for marker in ("summary.json", DONE, PREEMPTED):
                (self.path / marker).unlink(missing_ok=True)
            for name, partition in (partitions or {}).items():
                if partition is not None:
                    partition.save(self.path / f"{name}.npz")

    def done(self) -> None:
        """Marks the run as finished, for scripts that ask whether to go on with it."""
        (self.path / DONE).touch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets others write here."""
        self._lock.release()


def earlier_settings(path: Path | None) -> dict[str, Any]:
    """Reads the settings of the run in a directory, under dotted keys; none where there is no run yet.

    Raises:
        ConfigurationError: they cannot be read.
    """
    if path is None or not (path / "config.yaml").exists():
        return {}
    try:
        return flatten(read_yaml(path / "config.yaml"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{path / 'config.yaml'} cannot be read ({reason}); choose another run_dir") from error


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Says of a directory that it cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"run_dir {path} cannot be written ({error.strerror or error}); choose another, or make room there"
        ) from error


def _lock(path: Path) -> FileLock:
    """Makes the directory where it is missing, and takes it for this process."""
    lock = FileLock(path / ".lock", blocking=False)
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout as error:  # which is an OSError, too
        raise ConfigurationError(f"run_dir {path} is in use by another run; choose another run_dir") from error
    return lock


def refuse_foreign(path: Path) -> set[str]:
    """Returns the names of what a directory holds, hidden files aside.

    Raises:
        ConfigurationError: that is no run.
    """
    held = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")} if path.is_dir() else set()
    if held and "config.yaml" not in held:
        raise ConfigurationError(f"run_dir {path} holds something that is no run; give an empty or a new directory")
    return held


def _first_free(name: str) -> Path:
    """Makes the first directory that is free, so that two runs that start at once take two."""
    path = Path("runs") / f"{name}-0"
    try:
        path.parent.mkdir(exist_ok=True)
        for number in count():
            path = path.with_name(f"{name}-{number}")
            with suppress(FileExistsError):
                path.mkdir()
                break
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made ({error.strerror}); give --run_dir") from error
    return path


def _resumable(path: Path, resolved: dict[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """Finds where the run in `path` goes on; a run without any checkpoint starts anew."""
    before = earlier_settings(path)
    now = flatten(resolved)
    differing = [key for key in sorted({*before, *now}) if key not in MAY_DIFFER and before.get(key) != now.get(key)]
    if differing:
        changes = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in differing)
        raise ConfigurationError(
            f"run_dir {path} cannot be resumed with other settings ({changes}); give the former, or another run_dir"
        )
    checkpoint, notes = newest_checkpoint(path / "checkpoint")
    finished = (path / "summary.json").exists()
    done = max(checkpoint.round if checkpoint else 0, before.get("rounds", 0) if finished else 0)
    if done > resolved["rounds"]:
        raise ConfigurationError(
            f"run_dir {path} is at round {done}; rounds is {resolved['rounds']}, give {done} or more"
        )
    if finished and done == resolved["rounds"]:
        raise ConfigurationError(f"run_dir {path} holds a finished run of {done} rounds; give more rounds to go on")
    if checkpoint is None and finished:
        raise ConfigurationError(f"run_dir {path} holds a finished run without a checkpoint; choose another run_dir")
    if checkpoint is None:
        notes = [*notes, f"run_dir {path} holds no checkpoint yet; the run starts anew"]
    return checkpoint, notes
