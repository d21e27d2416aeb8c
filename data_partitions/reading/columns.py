"""Columns of one split of a data set: from a local folder or file, or from the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_partitions.errors import DataError
from data_partitions.reading.hub import first_line, load_from_hub
from data_partitions.reading.image_folder import COLUMNS as IMAGE_COLUMNS
from data_partitions.reading.image_folder import has_classes, read_image_folder

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".csv")
"""The formats that are read, the first one found winning where a split lies there in several."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class _Names(NamedTuple):
    """Columns to read: those that must be there, and those that may."""

    required: list[str]
    optional: list[str]


def load_columns(
    path: str,
    split: str,
    columns: Sequence[str],
    *,
    config: str | None = None,
    optional: Sequence[str] = (),
    key: str = "data.path",
) -> Dataset:
    """Reads some columns of one split.

    A folder's file of a split is `train.parquet`, its shards `train-00000-of-00002.parquet` and so on, in the folder
    or, as in a clone from the hub, in one folder below it; .jsonl, .jsonl.gz and .csv likewise. A single file is read
    only for the split that it is named after, so that no file is trained on and tested on by mistake.

    A folder without such a file may hold images as `train/CLASS NAME/FILE.png`. Its columns are `img` and `image`,
    which are the same, and `label`: the number of the class, the class folders of `train` being sorted by name.

    Args:
        path: a local folder or file (an existing path, or anything that starts with `/`, `.` or `~`) or a hub id
            `owner/name`, which `datasets` downloads once and keeps.
        split: the split's name, such as "train".
        columns: the names of the columns to read.
        config: which of a data set's configurations, such as "sst2" of GLUE. In a local folder it is the folder of
            this name; where there is none, what lies in `path` itself is taken for it, and nothing further below.
        optional: the names of columns that are read too where the data have them, in every row then.
        key: by which key the user named the path, for errors.

    Returns:
        These columns, in this order; a local file's are in memory. A column of labels whose names the data know is a
        `datasets.ClassLabel`.

    Raises:
        DataError: if there is nothing under `path` (the hub is given 3 seconds), no file for the split, a column is
            missing or lacks a value, or a file is broken; for an image folder see `read_image_folder`.
    """
    names = _Names(list(dict.fromkeys(columns)), list(dict.fromkeys(name for name in optional if name not in columns)))
    if is_local(path):
        return _read_local(find_files(path, split, config, key=key), names)
    if not HUB_ID.fullmatch(path):
        raise DataError(
            f"{key} {path!r} is no folder here and no hub id, expected a local folder or owner/name: correct it"
        )
    found = load_from_hub(path, config, split, key=key)
    chosen = found.select_columns(_choose(f"{key} {path!r}", found.column_names, names))
    _require_values(f"{key} {path!r}, {split},", chosen.with_format("arrow")[:])
    return chosen


def require_label_names(where: str, found: Dataset, expected: Sequence[str], column: str = "label") -> None:
    """Refuses other names of labels, and the same in another order: their numbers would silently mean other classes.

    Args:
        where: what to call the data in the error.
        found: what `load_columns` returned; data whose labels have no names pass.
        expected: the names in the order of their numbers.
        column: the labels' column.

    Raises:
        DataError: for the first label of another name.
    """
    names = getattr(found.features[column], "names", expected)
    for label, (name, wanted) in enumerate(zip_longest(names, expected)):
        if name != wanted:
            raise DataError(
                f"{where} has {len(names)} classes, label {label} being {name!r}, expected {wanted!r}: give data whose"
                f" labels 0 to {len(expected) - 1} are {', '.join(expected)}"
            )


def is_local(path: str) -> bool:
    """Tells whether a path means a file or folder here rather than a hub id."""
    return path.startswith(("/", ".", "~")) or os.path.exists(path)


def find_files(path: str, split: str, config: str | None = None, *, key: str = "data.path") -> list[Path]:
    """Finds a split's files.

    Args:
        path: a local folder or file, `~` allowed.
        split: the split's name.
        config: as in `load_columns`.
        key: as in `load_columns`.

    Returns:
        One file, or all shards in order, all of one format; or the one folder that holds the split's class folders.

    Raises:
        DataError: where there is nothing, a shard is missing, or several folders below hold the split.
    """
    root = Path(os.path.expanduser(path))
    if not root.exists():
        raise DataError(f"{key} {path!r} does not exist, expected a folder of files such as {split}.parquet")
    try:
        if config and (root / config).is_dir():
            path, root, config = os.path.join(path, config), root / config, None
        found = _find_groups(root, split, below=not config)
    except OSError as error:
        raise DataError(f"{key} {path!r} cannot be listed ({first_line(error)}): correct its permissions") from error
    if len(found) > 1:
        raise DataError(
            f"{key} {path!r} holds {split} in {len(found)} folders, {found[0][0].parent.name} and"
            f" {found[1][0].parent.name} among them, expected one: give that folder's path"
        )
    if not found:
        raise DataError(
            f"{key} {path!r} has no file for the split {split}, expected {split}{' or '.join(SUFFIXES)}, or images"
            f" as {split}/CLASS NAME/FILE.png{f', in it or in its folder {config}' if config else ''}: rename one"
        )
    return found[0]


def _find_groups(root: Path, split: str, below: bool) -> list[list[Path]]:
    """The split's files in `root`, else, if asked for, those in each folder below, else its folder of classes.

    Not below where a configuration is wanted: the only folder there could be another, and be taken for it.
    """
    if root.is_file():
        folders = [[root]]
    elif _match(root.iterdir(), split):
        folders = [list(root.iterdir())]
    else:
        folders = [list(folder.iterdir()) for folder in sorted(root.iterdir()) if below and folder.is_dir()]
    found = [files for folder in folders if (files := _match(folder, split))]
    return found or ([[root / split]] if has_classes(root / split) else [])


def _match(files: Iterable[Path], split: str) -> list[Path]:
    """The files of a split among these: `split.parquet`, else its shards, else the same in the next format."""
    names = {file.name: file for file in files if file.is_file()}
    for suffix in SUFFIXES:
        if whole := names.get(split + suffix):
            return [whole]
        pattern = re.compile(rf"{re.escape(split)}-(\d+)-of-(\d+){re.escape(suffix)}")
        shards = sorted(name for name in names if pattern.fullmatch(name))
        if shards:
            _check_shards(names[shards[0]].parent, [(m[1], m[2]) for name in shards if (m := pattern.fullmatch(name))])
            return [names[name] for name in shards]
    return []


def _check_shards(folder: Path, numbers: list[tuple[str, str]]) -> None:
    """Refuses a download that was cut short, or two downloads in one folder."""
    total = int(numbers[0][1])
    if [(int(number), int(of)) for number, of in numbers] != [(number, total) for number in range(total)]:
        raise DataError(
            f"{folder} has {len(numbers)} shards of a split in {total}, expected each number once: download it again"
        )


def _read_local(files: list[Path], names: _Names) -> Dataset:
    import pyarrow
    from datasets import Dataset

    if files[0].is_dir():
        return Dataset(read_image_folder(files[0], _choose(str(files[0]), IMAGE_COLUMNS, names)))
    tables = [_read_file(file, names) for file in files]
    _require_alike(files, tables)
    try:
        return Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"{files[0]} and its {len(files) - 1} further shards do not fit together ({first_line(error)}),"
            f" expected columns of one type: write them again"
        ) from error


def _read_file(file: Path, names: _Names) -> pyarrow.Table:
    """Reads columns of one file and holds them to being there."""
    import pyarrow

    reader = {".parquet": _read_parquet, ".csv": _read_csv}.get(file.suffix, _read_jsonl)
    try:
        table = reader(file, names)
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error) as error:
        kind = "".join(file.suffixes[-2:] if file.suffix == ".gz" else file.suffixes[-1:])
        raise DataError(
            f"{file} cannot be read ({first_line(error)}), expected a whole {kind} file: get it again"
        ) from error
    _require_values(str(file), table)
    return table


def _read_parquet(file: Path, names: _Names) -> pyarrow.Table:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as source:
        columns = _choose(str(file), source.schema_arrow.names, names)
        return source.read(columns).select(columns)


def _read_csv(file: Path, names: _Names) -> pyarrow.Table:
    from pyarrow import csv

    # Texts may hold line breaks, and an empty text is one; an empty number is a missing value.
    table = csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
    return table.select(_choose(str(file), table.column_names, names))


def _read_jsonl(file: Path, names: _Names) -> pyarrow.Table:
    import pyarrow

    rows = list(_json_rows(file))
    table = {}
    for name in _choose(str(file), list(dict.fromkeys(name for row in rows for name in row)), names):
        try:
            table[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # A lone surrogate is a ValueError.
            raise DataError(
                f"{file} has values in {name!r} that make no column ({first_line(error)}), expected values of one"
                f" type: correct them"
            ) from error
    return pyarrow.table(table)


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSONL file; a broken line is named, which Arrow's own reader does not do."""
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{file} line {number} is no JSON ({first_line(error)}), expected one object a line: correct it"
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{file} line {number} is a JSON {type(row).__name__}, expected one object a line: correct it"
                )
            yield row


def _choose(where: str, present: Sequence[str], names: _Names) -> list[str]:
    """Which columns to read of those that are present."""
    columns = names.required + [name for name in names.optional if name in present]
    missing = [name for name in columns if name not in present]
    twice = [name for name in columns if list(present).count(name) > 1]
    if twice:
        raise DataError(f"{where} has the column {twice[0]!r} twice, expected it once: rename or drop one of them")
    if missing:
        there = ", ".join(map(repr, present)) or "none"
        raise DataError(f"{where} has no column {missing[0]!r}, it has {there}: rename the column or give other data")
    return columns


def _require_alike(files: list[Path], tables: list[pyarrow.Table]) -> None:
    """Refuses shards of which some have an optional column and others do not."""
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        lacking = [file for file, table in zip(files, tables, strict=True) if name not in table.column_names]
        if lacking:
            raise DataError(
                f"{lacking[0]} has no column {name!r}, which another shard has, expected it in all: write them again"
            )


def _require_values(where: str, table: pyarrow.Table) -> None:
    for name in table.column_names:
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise DataError(f"{where} has no {name!r} at row {row}, expected a value in every row: fill or drop it")
