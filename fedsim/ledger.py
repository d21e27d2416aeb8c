"""The ledger: bytes up and down, per client and round. A byte is a byte of an encoded payload that could be sent."""

import csv
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from fedsim.codec import values_in
from fedsim.disk import naming
from fedsim.errors import ConfigurationError

VALUE_BYTES = 4
"""The paper's convention charges each value four bytes and its index nothing; both are kept, side by side."""


@dataclass(frozen=True)
class Entry:
    """One client in one round.

    Attributes:
        round: 1 to N.
        client: the client.
        worker: the process that trained it.
        examples: how many it trained on; without any, or dropped, it takes part with weight zero and pays no bytes.
        upload_bytes: the length of the encoded payload that it sent.
        download_bytes: the length of the encoded payload that it received.
        upload_values: how many values the upload held.
        download_values: how many values the download held.
    """

    round: int
    client: int
    worker: int
    examples: int
    upload_bytes: int
    download_bytes: int
    upload_values: int
    download_values: int

    @classmethod
    def of(
        cls, round: int, client: int, worker: int, examples: int, upload: "Travelled", download: "Travelled"
    ) -> "Entry":
        """Enters what one client sent and received: nothing, where it took part without examples."""
        return cls(round, client, worker, examples, upload.length, download.length, upload.values, download.values)


class Travelled(NamedTuple):
    """What is counted of a message: how long it is, and how many values it holds."""

    length: int = 0
    values: int = 0

    @classmethod
    def of(cls, message: bytes) -> "Travelled":
        """Measures a message; an empty one is none."""
        return cls(len(message), values_in(message) if message else 0)


@dataclass
class Totals:
    """Sums over all entries so far, in bytes; values at four bytes each."""

    upload_bytes: int = 0
    download_bytes: int = 0
    upload_value_bytes: int = 0
    download_value_bytes: int = 0


def require_length(path: Path, position: int) -> None:
    """Raises a ConfigurationError where a file ends before the position that a checkpoint remembers."""
    if position and (not path.exists() or path.stat().st_size < position):
        raise ConfigurationError(
            f"{path} is shorter than the {position} bytes that its checkpoint remembers; choose another run_dir"
        )


class Ledger:
    """Writes ledger.csv as rounds end and keeps its sums.

    Args:
        path: of ledger.csv.
        position: where a resumed run goes on, in bytes of the file; what stands behind is dropped.
        totals: the sums up to there.

    Raises:
        ConfigurationError: the file ends before that position.
    """

    COLUMNS = tuple(field.name for field in fields(Entry))

    def __init__(self, path: Path, position: int = 0, totals: Totals | None = None) -> None:
        self.totals = totals or Totals()
        self._path = path
        require_length(path, position)
        self._file = path.open("a" if position else "w", newline="", encoding="utf-8")
        self._file.seek(self._file.truncate(position))
        self._rows = csv.writer(self._file, lineterminator="\n")
        if not position:
            self._rows.writerow(self.COLUMNS)

    def add(self, entry: Entry) -> None:
        """Enters one client's bytes."""
        with naming(self._path):
            self._rows.writerow([getattr(entry, column) for column in self.COLUMNS])
        self.totals.upload_bytes += entry.upload_bytes
        self.totals.download_bytes += entry.download_bytes
        self.totals.upload_value_bytes += VALUE_BYTES * entry.upload_values
        self.totals.download_value_bytes += VALUE_BYTES * entry.download_values

    def sync(self) -> int:
        """Brings the file to disk and returns its length in bytes: the position that a checkpoint remembers."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        with naming(self._path):
            self._file.close()
