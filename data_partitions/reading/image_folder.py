"""Columns from an image folder: below the folder of each split one folder per class, and in it that class's images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_partitions.errors import DataError

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("img", "image", "label")
"""What an image folder has: its images, under either of the two names that data sets use, and their classes."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What an image's name ends in, upper or lower case; the same as in torchvision's ImageFolder."""

TRAIN = "train"
LITTER = ("thumbs.db", "desktop.ini")
"""What file managers leave behind, beside names that begin with a dot or two underscores."""


def has_classes(folder: Path) -> bool:
    """Tells whether this is a split's folder, with folders in it.

    Args:
        folder: a folder or what may be none.

    Returns:
        True where there is a folder in it that is not hidden.
    """
    return folder.is_dir() and any(entry.is_dir() for entry in _list(folder))


def read_image_folder(folder: Path, columns: Sequence[str]) -> pyarrow.Table:
    """Reads the images of one split, undecoded.

    Labels number the class folders of the split `train`, sorted by name, whatever split is read, so that a number
    means one class in all of them. A class without images in a split, or without a folder in one other than `train`,
    keeps its number. Images come class by class, sorted by file name.

    Args:
        folder: the split's folder, such as PATH/test, beside PATH/train.
        columns: some of `COLUMNS`.

    Returns:
        These columns, in this order: `img` and `image` hold {bytes, path} of each file, `label` int64 carries the
        classes' names (`datasets.ClassLabel`).

    Raises:
        DataError: if there is no folder `train`, it lacks a class of this split, something lies there that is neither
            hidden nor an image, or a file cannot be read.
    """
    import pyarrow
    from datasets import ClassLabel, Features, Image

    names = _list_classes(folder.parent / TRAIN)
    classes = _list_classes(folder)
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise DataError(
            f"{folder / unknown[0]} is a class that {folder.parent / TRAIN} lacks, expected the same class folders in"
            f" every split: rename it, or add it to {TRAIN}"
        )
    features = Features({name: ClassLabel(names=names) if name == "label" else Image() for name in columns})
    tables = [features.arrow_schema.empty_table()]
    for name in classes:
        images = pyarrow.array([_read(file) for file in _list_images(folder / name)], Image().pa_type)
        labels = pyarrow.array([names.index(name)] * len(images), pyarrow.int64())
        arrays = [labels if column == "label" else images for column in columns]
        tables.append(pyarrow.Table.from_arrays(arrays, schema=features.arrow_schema))
    return pyarrow.concat_tables(tables)


def _list_classes(folder: Path) -> list[str]:
    """The sorted names of a split's class folders; there is at least one."""
    if not has_classes(folder):
        raise DataError(
            f"{folder} holds no class folders, expected {folder.name}/CLASS NAME/FILE.png, as the class folders of"
            f" {TRAIN} number the labels of every split: add them"
        )
    entries = _list(folder)
    for entry in entries:
        if not entry.is_dir():
            raise DataError(f"{entry} lies beside class folders, expected nothing but them there: move it elsewhere")
    return [entry.name for entry in entries]


def _list_images(folder: Path) -> list[Path]:
    """A class's files; one that is no image is refused, as passing over a misspelt name would lose an example."""
    files = _list(folder)
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{file} is no image by its name, expected only {', '.join(SUFFIXES)} in a class folder: move it"
                f" elsewhere or rename it"
            )
    return files


def _list(folder: Path) -> list[Path]:
    """What is not hidden in a folder, sorted by name."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}): correct its permissions") from error
    return [e for e in entries if not e.name.startswith((".", "__")) and e.name.lower() not in LITTER]


def _read(file: Path) -> dict[str, Any]:
    try:
        # Arrow holds no name that is not UTF-8.
        return {"bytes": file.read_bytes(), "path": os.fsencode(file).decode(errors="replace")}
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}), expected an image file: replace or drop it"
        ) from error
