"""`fedsim partition`: makes the partition of a run, or loads one; saves, describes and draws it."""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path

from rich.console import Console

from data_partitions.dataset import FederatedData
from data_partitions.errors import DataError
from data_partitions.partition import Partition
from fedsim.errors import ConfigurationError
from launch.arguments import Arguments
from launch.configuration import Settings, read_settings, save_yaml
from launch.reports.canvas import render
from launch.reports.partition_figure import draw_partition
from launch.reports.partition_table import Subject, describe

FILES = ("partition.npz", "config.yaml", "partition.png", "partition.svg")
_DESCRIPTION = (
    "Makes the partition that `fedsim run` makes of the same keys, or loads a saved one; describes and draws it. All "
    "keys of `fedsim run` may be given (fedsim run --help); --data, --partition and --seed are what matters here."
)


def main(argv: Sequence[str]) -> int:
    """Describes and draws a partition that is made or loaded."""
    parser = Arguments("partition", _DESCRIPTION)
    parser.usage = "fedsim partition [--config FILE] [--KEY VALUE ...] [--load PATH] [--out DIR]"
    parser.add_argument("--load", type=Path, help="a saved partition: an .npz file, or the folder or run that has one")
    parser.add_argument("--out", type=Path, help="where to write; default partitions/<partition>-<data>-s<seed>-<n>")
    arguments, keys = parser.parse_known_args(argv)
    if keys and not keys[0].startswith("-"):
        raise ConfigurationError(f"{keys[0]} stands without a key; give --load {keys[0]} for a saved partition")
    console = Console()
    if arguments.load is None:
        _make(keys, arguments.out, console)
    else:
        _load(arguments.load, keys, arguments.out, console)
    return 0


def _make(keys: list[str], out: Path | None, console: Console) -> None:
    """Makes a partition and writes it with its settings and its pictures."""
    from launch.build import make_partition

    settings = read_settings(keys)
    data = settings.data.load()
    # Nobody is sampled here, so a cohort may be as small as it must.
    alone = dataclasses.replace(settings, run=dataclasses.replace(settings.run, cohort_size=1))
    partition = _with_origin(make_partition(alone, data), settings)
    config = save_yaml(settings.resolved)
    name = f"{type(settings.partition).__name__}-{type(settings.data).__name__}-s{settings.run.seed}"
    folder = _free_folder(name, partition, config) if out is None else out
    if _holds_another(folder, partition, config):
        raise ConfigurationError(f"{folder} holds another partition or a run; give another folder: --out DIR")
    subject = Subject(partition, data)
    _write(folder, {"partition.npz": partition, "config.yaml": config.encode(), **_pictures(subject, "partition")})
    describe(subject, console)
    _say_where(folder, FILES, console)


def _load(path: Path, keys: list[str], out: Path | None, console: Console) -> None:
    """Reads a partition and draws it beside its file; labels come from the keys, or from the config.yaml beside it."""
    file = path / "partition.npz" if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"{file} does not exist; give --load an .npz file, or the folder or run that has one")
    subject = _subject(Partition.load(file), file.with_name("config.yaml"), keys)
    pictures = _pictures(subject, file.stem)
    folder = file.parent if out is None else out
    _write(folder, pictures)
    describe(subject, console)
    _say_where(folder, pictures, console)


def _subject(partition: Partition, config: Path, keys: list[str]) -> Subject:
    """Finds the data of a loaded partition; where only its settings are there and not the data, sizes must do."""
    if keys:
        settings = read_settings(keys)
        return Subject(_with_origin(partition, settings, seed=False), _dealt(partition, settings))
    if not config.is_file():
        return Subject(partition, None, ("no labels: give the data, as --data NAME or --config FILE",))
    try:
        settings = read_settings(["--config", str(config)])
        return Subject(_with_origin(partition, settings), _dealt(partition, settings))
    except (ConfigurationError, DataError) as error:
        return Subject(partition, None, (f"no labels: {error}",))


def _dealt(partition: Partition, settings: Settings) -> FederatedData:
    """Loads the data, which must have every row that the partition deals."""
    data = settings.data.load()
    examples = len(next(iter(data.train.values())))
    if len(partition.indices) and (last := int(partition.indices.max())) >= examples:
        raise ConfigurationError(
            f"the partition deals row {last}, but {type(settings.data).__name__} has {examples} training examples; "
            "give the data that it was made of: --data NAME"
        )
    return data


def _with_origin(partition: Partition, settings: Settings, seed: bool = True) -> Partition:
    """Adds to the arguments what else it was made of: the data, and the seed where it is known to be this one."""
    origin = {"data": type(settings.data).__name__} | ({"seed": settings.run.seed} if seed else {})
    return dataclasses.replace(partition, arguments=origin | partition.arguments)


def _pictures(subject: Subject, stem: str) -> dict[str, bytes]:
    names = subject.data.label_names if subject.data else ()
    figure = draw_partition(subject.partition, subject.labels, names, subject.heading)
    return {f"{stem}.png": render(figure, "png"), f"{stem}.svg": render(figure, "svg")}


def _free_folder(name: str, partition: Partition, config: str) -> Path:
    """Returns the first folder that is free, or holds this very partition."""
    return next(
        folder
        for number in count()
        if not _holds_another(folder := Path("partitions") / f"{name}-{number}", partition, config)
    )


def _holds_another(folder: Path, partition: Partition, config: str) -> bool:
    """Whether writing into a folder would replace what is not the same partition of the same settings."""
    if not any((folder / name).exists() for name in FILES):
        return False
    try:
        same = (folder / "config.yaml").read_bytes() == config.encode()
        return not same or Partition.load(folder / "partition.npz").digest() != partition.digest()
    except (OSError, DataError):
        return True


def _write(folder: Path, contents: Mapping[str, bytes | Partition]) -> None:
    """Writes all files into a folder of their own first, so that a full disk leaves no half-written file."""
    unfinished = folder / f".partition.{os.getpid()}"
    try:
        unfinished.mkdir(parents=True)
        for name, content in contents.items():
            if isinstance(content, Partition):
                content.save(unfinished / name)
            else:
                (unfinished / name).write_bytes(content)
        for name in contents:
            os.replace(unfinished / name, folder / name)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror or error}); give another folder: --out DIR"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _say_where(folder: Path, names: Iterable[str], console: Console) -> None:
    console.print(f"written to {folder}: {', '.join(names)}", markup=False, highlight=False, soft_wrap=True)
