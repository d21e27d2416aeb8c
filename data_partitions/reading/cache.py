"""Arrays that take time to make, kept in files and mapped: named by all that decides them, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_partitions.errors import DataError

CHECKSUM_BYTES = hashlib.sha256().digest_size
BUFFER_BYTES = 2**20
PIECE_BYTES = 2**26
"""How much of a large array is made before it is written."""

# Without it Linux counts a private mapping against memory and refuses one that is larger. Not every Python names it;
# the number is that of x86, ARM and RISC-V.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def cached_array(
    folder: str | Path, name: str, parts: Iterable[bytes | None], make: Callable[[], np.ndarray]
) -> np.ndarray:
    """Makes an array, or maps what an earlier call made from the same parts.

    The file is written whole or not at all, and made again where it does not hold what its checksum says. A folder
    that cannot be written to is done without.

    Args:
        folder: where arrays are kept, `~` allowed; made where missing.
        name: what the file's name begins with.
        parts: all that decides the array: the versions of what makes it, and what it is made from.
        make: makes it.

    Returns:
        The array, of any shape and dtype but objects. Where it comes from the file, its pages are read when they are
        used and shared with other workers; writing to it changes no file.
    """
    file = _file(folder, name, parts)
    array = _read(file)
    if array is None:
        array = np.ascontiguousarray(make())
        with suppress(OSError):  # A read-only home or a full disk costs a later start some seconds, not this run.
            file.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(file, file.with_name(f".{file.name}.{os.getpid()}")) as target:
                _write(target, array.shape, array.dtype, [array])
    return array


def cached_rows(
    folder: str | Path,
    name: str,
    parts: Iterable[bytes | None],
    shape: Sequence[int],
    dtype: str,
    fill: Callable[[int, np.ndarray], None],
) -> np.ndarray:
    """Makes an array that may be larger than memory piece by piece, or maps what an earlier call made.

    As `cached_array`, but one worker makes the file while the others wait for it, and the array is mapped from it at
    once: at no time are more than some 64 MB of it held.

    Args:
        folder: as in `cached_array`; where it cannot be written to or is too full, the array is made in memory.
        name: as in `cached_array`.
        parts: as in `cached_array`; shape and dtype need not be among them.
        shape: of the array; its first dimension is cut into pieces.
        dtype: of the array, such as "uint8"; no objects.
        fill: called as fill(first, rows), writes the array's rows from number `first` on into `rows`, which holds
            anything before. It raises no OSError.

    Returns:
        The array.

    Raises:
        DataError: where neither the folder nor memory has room for it; and what `fill` raises.
    """
    kind, whole = np.dtype(dtype), tuple(shape)
    file = _file(folder, name, chain([f"{kind.str} {whole}".encode()], parts))
    array = _read(file)
    if array is None:
        try:
            array = _make_rows(file, whole, kind, fill)
        except (OSError, NotImplementedError) as error:  # filelock raises the latter where files cannot be locked.
            array = _make_in_memory(file, whole, kind, fill, error)
    return array


def _make_rows(
    file: Path, shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[int, np.ndarray], None]
) -> np.ndarray:
    """Writes the file, unless another worker just did, and maps it."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    # A kill releases the lock and leaves an unfinished file, which the next start writes over.
    with FileLock(file.with_name(f".{file.name}.lock")):
        array = _read(file)
        if array is not None:
            return array
        unfinished = file.with_name(f".{file.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        if shutil.disk_usage(file.parent).free < math.prod(shape) * dtype.itemsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def pieces() -> Iterator[np.ndarray]:
            for first, rows in _cut(shape, dtype):
                piece = np.empty((rows, *shape[1:]), dtype)
                fill(first, piece)
                yield piece

        with _replacing(file, unfinished) as target:
            _write(target, shape, dtype, pieces())
        with file.open("rb") as source:
            return _map(source)


def _make_in_memory(
    file: Path, shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[int, np.ndarray], None], reason: Exception
) -> np.ndarray:
    try:
        array = np.empty(shape, dtype)
    except MemoryError as error:
        size = math.prod(shape) * dtype.itemsize / 1e9
        raise DataError(
            f"{file} cannot be written ({getattr(reason, 'strerror', None) or reason}), and its {size:.1f} GB do not"
            f" fit into memory: give a folder with room with --data.cache"
        ) from error
    for first, rows in _cut(shape, dtype):
        fill(first, array[first : first + rows])
    return array


def _cut(shape: tuple[int, ...], dtype: np.dtype) -> Iterator[tuple[int, int]]:
    """The first row and the number of rows of each piece."""
    step = max(1, PIECE_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    for first in range(0, shape[0], step):
        yield first, min(step, shape[0] - first)


def _file(folder: str | Path, name: str, parts: Iterable[bytes | None]) -> Path:
    """The file of an array, named by its parts, their cuts included."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part or b"").to_bytes(8, "little"))
        digest.update(part or b"")
    return Path(folder).expanduser() / f"{name}-{digest.hexdigest()[:32]}.npy"


def _read(file: Path) -> np.ndarray | None:
    """The array of a cache file, or None where there is none or it is damaged."""
    try:
        with file.open("rb") as source:
            return _map(source) if _is_whole(source) else None
    except OSError:
        return None


def _is_whole(source: io.BufferedReader) -> bool:
    """Whether a file ends with the checksum of what stands before it."""
    # Read through a small buffer: hashing a mapping would count every page of it as this process's memory.
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER_BYTES))
    left = os.fstat(source.fileno()).st_size - CHECKSUM_BYTES
    while left > 0 and (size := source.readinto(buffer[: min(left, BUFFER_BYTES)])):
        digest.update(buffer[:size])
        left -= size
    return left == 0 and source.read() == digest.digest()


def _map(source: io.BufferedReader) -> np.ndarray:
    """Maps a whole file's array such that it can be written to, as torch wants it, and the file stays as it is."""
    source.seek(0)
    np.lib.format.read_magic(source)
    shape, _, dtype = np.lib.format.read_array_header_1_0(source)
    mapped = mmap.mmap(source.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.ndarray(shape, dtype, mapped, source.tell())


@contextmanager
def _replacing(file: Path, unfinished: Path) -> Iterator[BinaryIO]:
    """A file under another name that takes its own once it is written; nothing is left of it where that fails."""
    try:
        with unfinished.open("wb") as target:
            yield target
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(target: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterable[np.ndarray]) -> None:
    """Writes an array as a .npy file and, behind it, the checksum of that."""
    if dtype.hasobject:
        raise ValueError(f"an array of {dtype} cannot be kept in a file")
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    digest = hashlib.sha256()
    for part in chain([header.getbuffer()], (piece.reshape(-1).view(np.uint8).data for piece in pieces)):
        target.write(part)
        digest.update(part)
    target.write(digest.digest())
