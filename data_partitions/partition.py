"""Which client holds which training example, and how that is kept in a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, eq=False)
class Partition:
    """The examples of every client, as one list cut into pieces.

    One array instead of a list per client: a million clients stay two arrays. Clients may hold nothing.

    Args:
        offsets: int64 (C+1,), from 0 to N, never falling; client c holds indices[offsets[c]:offsets[c+1]].
        indices: int64 (N,), rows of the training data, none twice.
        arguments: how it was made, JSON-able.

    Raises:
        DataError: for arrays that are not such a list.
    """

    offsets: np.ndarray
    indices: np.ndarray
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in (("offsets", self.offsets), ("indices", self.indices)):
            if array.dtype != np.int64 or array.ndim != 1:
                raise DataError(f"{name} is {array.dtype} {array.shape}, expected int64 in one dimension: convert it")
        _check_offsets(self.offsets, len(self.indices))
        _check_disjoint(self.indices)

    @classmethod
    def from_owners(cls, owners: np.ndarray, clients: int, arguments: dict[str, Any]) -> Partition:
        """Makes a partition of all examples from the client that owns each.

        Args:
            owners: integers (N,), the client of each example, 0 to clients - 1.
            clients: how many clients there are, those that own nothing included.
            arguments: how it was made, JSON-able.

        Returns:
            The partition, each client's examples in rising order.
        """
        counts = np.bincount(owners, minlength=clients)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets, np.argsort(owners, kind="stable").astype(np.int64), arguments)

    @property
    def clients(self) -> int:
        """How many clients there are, C, empty ones included."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each client holds, int64 (C,)."""
        return np.diff(self.offsets)

    def examples(self, client: int) -> int:
        """How many examples `client` (0 to C - 1) holds."""
        return int(self.offsets[client + 1] - self.offsets[client])

    def of(self, client: int) -> np.ndarray:
        """The rows that `client` (0 to C - 1) holds, int64 (n,): a view, not to be written to."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def digest(self) -> str:
        """The SHA-256 of offsets and indices in hexadecimal: equal for equal partitions on every machine."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets, dtype="<i8").data)
        digest.update(np.ascontiguousarray(self.indices, dtype="<i8").data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the partition whole or not at all.

        Args:
            path: the .npz file to make or replace; its folder exists.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with unfinished.open("wb") as file:
                arguments = np.array(json.dumps(self.arguments, sort_keys=True))
                np.savez(file, offsets=self.offsets, indices=self.indices, arguments=arguments)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Partition:
        """Reads and checks what `save` wrote; pickled content is never run.

        Args:
            path: the .npz file.

        Returns:
            The partition.

        Raises:
            DataError: where the file is missing, unreadable or not a partition.
        """
        try:
            offsets, indices, text = _read_arrays(Path(path))
            arguments = json.loads(text.encode().decode())  # numpy lets numbers pass that are no characters
            json.dumps(arguments, ensure_ascii=False).encode()  # as half a pair of surrogates cannot be shown
            if not isinstance(arguments, dict):
                raise DataError(f"arguments is a JSON {type(arguments).__name__}, expected an object")
            return cls(offsets, indices, arguments)
        except Exception as error:  # of zipfile, numpy and json on whatever bytes these are
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{path} is no partition ({reason}), expected an .npz of offsets, indices and arguments: make it again"
            ) from error


class Partitioner(ABC):
    """A rule that deals training examples to clients, and may change what a client sees of them."""

    @abstractmethod
    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example to exactly one client.

        Args:
            labels: integers (N,), the label of each training example.
            user: who wrote each example (N,); None where nobody knows.
            generator: the only source of randomness: an equal generator gives an equal partition.

        Returns:
            The partition; clients may be empty where the rule says so.

        Raises:
            DataError: where the data lack what the rule needs.
        """

    def alter(
        self, columns: dict[str, Tensor], partition: Partition, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """Makes what each client sees of its examples, once, before training; by default what the data set holds.

        Test data are not given: they stay as they are for all.

        Args:
            columns: the training columns, (N, ...) each; never written to.
            partition: which client holds which rows.
            generator: the only source of randomness: an equal generator gives equal columns, on every worker.

        Returns:
            Columns of the same names, shapes and dtypes, in the same order of rows; here the columns themselves.

        Raises:
            DataError: where the data lack what the rule needs.
        """
        return columns


def _check_offsets(offsets: np.ndarray, examples: int) -> None:
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != examples:
        ends = f"{len(offsets)} entries" + (f" from {offsets[0]} to {offsets[-1]}" if len(offsets) else "")
        raise DataError(f"offsets has {ends}, expected at least two from 0 to {examples}: make the partition again")
    falling = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(falling):
        raise DataError(f"offsets falls after client {falling[0]}, expected never: make the partition again")


def _check_disjoint(indices: np.ndarray) -> None:
    ordered = np.sort(indices)
    if len(ordered) and ordered[0] < 0:
        raise DataError(f"indices holds {ordered[0]}, expected rows of at least 0: make the partition again")
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(repeated):
        raise DataError(f"indices holds {ordered[repeated[0]]} twice, expected disjoint clients: make it again")


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    # Given a path, np.load leaks its handle when the archive is broken.
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as members:
                _require_held(members, path.stat().st_size)
        elif file.seek(0) == 0 and file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise DataError("it is a single array")
        file.seek(0)
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError("it is no archive")
        return archive["offsets"], archive["indices"], str(archive["arguments"])


def _require_held(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses arrays that are larger than the file: numpy makes room for what a header claims before it reads."""
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise DataError(f"{info.filename} is compressed")
        if max(info.file_size, info.compress_size) > size:
            raise DataError(f"{info.filename} claims {info.file_size} bytes of a file of {size}")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version not in _HEADERS:
                raise DataError(f"{info.filename} is of the unknown version {version}")
            shape, _, dtype = _HEADERS[version](member)
        if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize > size:
            raise DataError(f"{info.filename} claims {shape} of {dtype} in a file of {size} bytes")
