"""Arrays that take time to make, kept in files: named by all that decides them, whole or not there at all."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

CHECKSUM_BYTES = hashlib.sha256().digest_size


def cached_array(
    folder: str | Path, name: str, parts: Iterable[bytes | None], make: Callable[[], np.ndarray]
) -> np.ndarray:
    """Makes an array, or reads what an earlier call made from the same parts.

    The file is written whole or not at all, and made again where it does not hold what its checksum says. A folder
    that cannot be written to is done without.

    Args:
        folder: where arrays are kept, `~` allowed; made where missing.
        name: what the file's name begins with.
        parts: all that decides the array: the versions of what makes it, and what it is made from.
        make: makes it.

    Returns:
        The array, of any shape and dtype but objects.
    """
    file = Path(folder).expanduser() / f"{name}-{_digest(parts)}.npy"
    array = _read(file)
    if array is None:
        array = np.ascontiguousarray(make())
        _write(file, array)
    return array


def _digest(parts: Iterable[bytes | None]) -> str:
    """Names an array by its parts, their cuts included, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part or b"").to_bytes(8, "little"))
        digest.update(part or b"")
    return digest.hexdigest()[:32]


def _read(file: Path) -> np.ndarray | None:
    """The array of a cache file, or None where there is none or it is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    array, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if hashlib.sha256(array).digest() != checksum:
        return None
    loaded: np.ndarray = np.load(io.BytesIO(array), allow_pickle=False)
    return loaded


def _write(file: Path, array: np.ndarray) -> None:
    """Writes the array as a .npy file and, behind it, the checksum of that."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as target:
            target.write(content.getbuffer())
            target.write(hashlib.sha256(content.getbuffer()).digest())
        os.replace(unfinished, file)
    except OSError:  # A read-only home or a full disk costs a later start some seconds, not this run.
        pass
    finally:
        if unfinished.exists():
            unfinished.unlink()
