"""From what a method wants to send to the bytes that travel, and back; error feedback keeps what was not sent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.client import Trained
from fedsim.codec import VALUE_DTYPES, Part, PayloadError, decode_message, encode
from fedsim.errors import UnsendableError
from fedsim.method import Download, Method, Upload
from fedsim.options import CommunicationOptions
from fedsim.sparse import SparseVector

RESIDUAL = "error_feedback.residual"
"""Under this name a client keeps what it has not sent yet, (P,)."""


@dataclass(frozen=True)
class Sent:
    """A client's message, and what it keeps at home.

    Attributes:
        payload: empty where it sends nothing.
        state: by name.
    """

    payload: bytes
    state: dict[str, Tensor]


class Exchange:
    """Writes and reads the messages of a run.

    Args:
        options: how values and indices are written, and whether clients keep what they did not send.
        length: number of entries of P.
    """

    def __init__(self, options: CommunicationOptions, length: int) -> None:
        self._options = options
        self._length = length

    @property
    def upload_bound(self) -> int:
        """About how much a client sends at most, whatever its method: all of P."""
        return self._length * VALUE_DTYPES[self._options.value_dtype].itemsize

    def write_download(self, download: Download, support: Tensor | None, what: str) -> bytes:
        """Writes what goes down.

        Args:
            download: its values within the support.
            support: the entries of P that travel, known to both ends; None for all.
            what: names the message in an error.

        Returns:
            The message; no byte where nothing may travel, so that there is nothing to say.

        Raises:
            UnsendableError: the value dtype cannot hold a value.
        """
        if support is not None and not len(support) and not download.beside:
            return b""
        return self._write(download.values, download.beside, support, what, 0)

    def read_download(self, payload: bytes, support: Tensor | None, like: Tensor) -> Download:
        """Reads what came down; values in the dtype and on the device of `like`."""
        if not payload:
            nothing = torch.empty(0, dtype=torch.int64, device=like.device)
            return Download(SparseVector(self._length, like.new_empty(0), nothing))
        values, beside, _ = self._read(payload, support, like)
        return Download(values, beside)

    def send_upload(self, method: Method, trained: Trained, examples: int, what: str) -> Sent:
        """Makes a client's message: its update as the method sends it, after what it still owed.

        With error feedback a client adds what it did not send before to its update, and keeps what it does not send now
        (Seide et al. 2014; Stich et al. 2018). What this round does not ask for stays owed as it was: nothing is added
        to it, as it may be the client's own parts.

        Args:
            method: the run's.
            trained: the job that is done.
            examples: how many it trained on.
            what: names the message in an error.

        Raises:
            UnsendableError: the value dtype cannot hold a value.
        """
        job, vector = trained.job, trained.vector
        owed = job.state.get(RESIDUAL) if self._options.error_feedback else None
        if owed is not None:
            vector = vector - owed
        upload = method.upload(job, vector)
        support = method.upload_support(job.shared, job.plan)
        payload = self._write_upload(upload, support, what, examples)
        state = dict(upload.state)
        if self._options.error_feedback and payload:
            sent, _, _ = self.read_upload(payload, support, job.reference)
            unsent = job.reference - vector - sent.to_dense()
            if support is not None:
                before = torch.zeros_like(unsent) if owed is None else owed
                places = support.to(unsent.device)
                unsent = before.index_copy(0, places, unsent[places])
            if unsent.any():  # who sent all of it keeps nothing
                state[RESIDUAL] = unsent
        elif owed is not None:
            state[RESIDUAL] = owed  # nothing was sent of it
        return Sent(payload, state)

    def read_upload(
        self, payload: bytes, support: Tensor | None, like: Tensor
    ) -> tuple[SparseVector, tuple[Part, ...], int]:
        """Reads an update of P, what travelled beside it, and the number of examples."""
        return self._read(payload, support, like)

    def _write_upload(self, upload: Upload, support: Tensor | None, what: str, examples: int) -> bytes:
        if upload.update is None:
            return b""
        return self._write(upload.update, upload.beside, support, what, examples)

    def _write(
        self, values: SparseVector, beside: tuple[Part, ...], support: Tensor | None, what: str, examples: int
    ) -> bytes:
        first = values if support is None else values.within(support.to(values.values.device))
        coding, dtype = self._options.index_coding, VALUE_DTYPES[self._options.value_dtype]
        try:
            return b"".join(encode(part, coding, dtype, examples) for part in (first, *beside))
        except ValueError as error:
            raise UnsendableError(what, str(error)) from error

    def _read(self, payload: bytes, support: Tensor | None, like: Tensor) -> tuple[SparseVector, tuple[Part, ...], int]:
        parts, examples = decode_message(payload)
        values, *beside = parts or [b""]
        if not isinstance(values, SparseVector):
            raise PayloadError("a message begins with values of P")
        if values.length != (expected := self._length if support is None else len(support)):
            raise PayloadError(f"a message holds a vector of {values.length}, expected one of {expected}")
        places = None if values.indices is None else values.indices.to(like.device)
        moved = SparseVector(values.length, values.values.to(like), places)
        if support is not None:
            moved = moved.beyond(support.to(like.device), self._length)
        return moved, tuple(beside), examples
