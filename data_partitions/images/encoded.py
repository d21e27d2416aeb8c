"""Encoded images, in files or in a column, and how any number of them become squares of one size in a mapped file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from data_partitions.errors import DataError
from data_partitions.images.pixels import decode_image
from data_partitions.reading.cache import cached_rows

if TYPE_CHECKING:
    import pyarrow

DECODERS = 8
"""How many threads decode at a time; Pillow lets go of the interpreter while it does."""


class EncodedImages(Protocol):
    """Images that are decoded one by one."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, row: int) -> bytes | None:
        """The content of an image's file; a DataError where it cannot be had. Called from several threads."""

    def place(self, row: int) -> str:
        """What to call an image in errors."""

    def parts(self) -> Iterator[bytes | None]:
        """What tells these images from others, in order."""


class ImageFiles:
    """Images in files, told from others by name, size and time of change: reading all would make every start slow.

    Args:
        split: such as "train", for errors.
        files: one for each image.
    """

    def __init__(self, split: str, files: Sequence[Path]) -> None:
        self._split = split
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, row: int) -> bytes:
        """See `EncodedImages`."""
        return read_image(self._files[row])

    def place(self, row: int) -> str:
        """See `EncodedImages`."""
        return f"{self._split} image at row {row} ({self._files[row]})"

    def parts(self) -> Iterator[bytes]:
        """See `EncodedImages`."""
        return (_stamp(file) for file in self._files)


class ImageCells:
    """Images in a column as `datasets` writes it, {bytes, path}.

    Args:
        split: such as "train", for errors.
        name: the column's name, for errors.
        column: a chunked Arrow array without missing values.

    Raises:
        DataError: where the column holds anything else.
    """

    def __init__(self, split: str, name: str, column: pyarrow.ChunkedArray) -> None:
        require_encoded(split, name, column)
        self._split = split
        self._column = column
        self._has_path = column.type.get_field_index("path") >= 0

    def __len__(self) -> int:
        return len(self._column)

    def read(self, row: int) -> bytes | None:
        """See `EncodedImages`; the hub has data whose cells name a file and do not hold it."""
        path = self._file(row)
        return read_image(path) if path else self._content(row)

    def place(self, row: int) -> str:
        """See `EncodedImages`."""
        path = self._path(row)
        return f"{self._split} image at row {row}" + (f" ({path})" if path else "")

    def parts(self) -> Iterator[bytes | None]:
        """See `EncodedImages`."""
        for row in range(len(self)):
            path = self._file(row)
            yield _stamp(path) if path else self._content(row)

    def _content(self, row: int) -> bytes | None:
        content: bytes | None = self._column[row]["bytes"].as_py()
        return content

    def _path(self, row: int) -> str | None:
        return self._column[row]["path"].as_py() if self._has_path else None

    def _file(self, row: int) -> Path | None:
        """The file of a cell that does not hold its image; None where it does, or names none."""
        path = self._path(row)
        return Path(path) if path and not self._column[row]["bytes"].is_valid else None


def cached_squares(images: EncodedImages, size: int, folder: str | Path) -> np.ndarray:
    """Decodes images of any sizes to RGB squares of one, or maps what an earlier call decoded from the same ones.

    An image is scaled by bicubic interpolation such that its shorter side fits, and the middle of it is taken. They go
    to the file piece by piece, so there may be more of them than fit into memory.

    Args:
        images: where they are.
        size: height and width of the squares, at least 1.
        folder: where decoded images are kept, `~` allowed; made where missing.

    Returns:
        uint8 (N, 3, size, size).

    Raises:
        DataError: for an image that cannot be read or decoded, and where there is no room; see `cached_rows`.
    """
    import PIL

    def square(row: int) -> np.ndarray:
        return decode_image(images.read(row), images.place(row), size).transpose(2, 0, 1)

    def fill(first: int, rows: np.ndarray) -> None:
        for row, pixels in enumerate(decoders.map(square, range(first, first + len(rows)))):
            rows[row] = pixels

    made_by = f"upright 8-bit RGB squares Pillow {PIL.__version__}".encode()
    with ThreadPoolExecutor(DECODERS) as decoders:
        shape = (len(images), 3, size, size)
        return cached_rows(folder, "squares", chain([made_by], images.parts()), shape, "uint8", fill)


def require_encoded(split: str, name: str, column: pyarrow.ChunkedArray) -> None:
    """Refuses a column of anything but encoded images, {bytes, path}, with a DataError."""
    kind = column.type
    if "bytes" not in [kind.field(number).name for number in range(kind.num_fields)]:
        raise DataError(f"{split} column {name} holds {kind}, expected encoded images, {{bytes, path}}: encode them")


def read_image(file: Path) -> bytes:
    """The content of an image's file; a DataError where it cannot be had."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _stamp(file: Path) -> bytes:
    """Tells one state of a file from others without reading it."""
    try:
        found = file.stat()
    except OSError as error:
        raise _unreadable(file, error) from error
    return f"{file} {found.st_size} {found.st_mtime_ns}".encode(errors="surrogateescape")


def _unreadable(file: Path, error: OSError) -> DataError:
    return DataError(f"{file} cannot be read ({error.strerror}), expected an image file: get it again, or drop its row")
