"""What travels, as bytes, and what the ledger counts: sparse vectors, sets of indices, and raw bytes such as a seed.

A message is one payload after another, each of which says how long it is. A payload is a header, the index section and
the value section; numbers are little endian, bits fill each byte from its highest. The header (`HEADER_BYTES` long):

    magic and version "FSV1" | index coding u8 | value dtype u8 | Rice parameter u8
    length u32 | entries kept u32 | examples u32 | bytes of the index section u32

Index sections, each padded with zero bits to whole bytes:

    dense    empty; every entry has a value, zero where it was not kept.
    bitmask  one bit per entry of the vector, set where a value is kept.
    rice     the gaps between indices (Rice, 1971), each split by the parameter r into quotient gap >> r and r low bits:
             first the low bits as r planes of a bit per gap, lowest plane first; then the quotients in unary, as many
             zeros and a one. Kept apart, both parts are read and written for all gaps at once.
    raw      the bytes themselves; length says how many.

A set of indices has the value dtype "none" and an empty value section, and so have raw bytes.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import unknown_name
from fedsim.sparse import IndexSet, SparseVector

VALUE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
INDEX_CODINGS: tuple[str, ...] = ("auto", "dense", "bitmask", "rice")

_HEADER = struct.Struct("<4s3B4I")
HEADER_BYTES: int = _HEADER.size
_MAGIC = b"FSV1"
_LIMIT = 2**32
_CODINGS = (*INDEX_CODINGS[1:], "raw")  # the header stores positions here and among VALUE_DTYPES: append, never reorder
_DTYPES = tuple(VALUE_DTYPES.values())
_NO_VALUES = 255  # in place of a value dtype
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes, to carry the bits of a float
_MAX_RICE_PARAMETER = 31  # gaps are below 2**32, so that a larger one never pays


Part = SparseVector | IndexSet | bytes
"""What one payload holds."""


class PayloadError(ValueError):
    """Bytes that are no payload: truncated, corrupted, or not made by `encode`."""


class _Header(NamedTuple):
    magic: bytes
    coding: int
    dtype: int
    rice_parameter: int
    length: int
    kept: int
    examples: int
    index_bytes: int

    @property
    def payload_bytes(self) -> int:
        """How long the payload is that begins with this header."""
        values = 0 if self.dtype == _NO_VALUES else self.length if self.coding == 0 else self.kept
        itemsize = 0 if self.dtype == _NO_VALUES else _DTYPES[self.dtype].itemsize
        return HEADER_BYTES + self.index_bytes + values * itemsize


def encode(
    part: Part,
    index_coding: str = "auto",
    value_dtype: torch.dtype = torch.float32,
    examples: int = 0,
) -> bytes:
    """Writes a vector, a set of indices, or raw bytes as a payload.

    Args:
        part: what to send, on any device, fewer than 2**32 entries. A vector that is dense stays dense under every
            coding; a set of indices takes the smaller of bitmask and rice under every coding.
        index_coding: one of `INDEX_CODINGS`. "auto" takes the smallest, of equals the first in that order; "dense"
            writes zeros where nothing was kept, so that the vector comes back dense.
        value_dtype: one of `VALUE_DTYPES`; values are rounded to the nearest.
        examples: how many examples the update was trained on, in [0, 2**32).

    Returns:
        The payload, `HEADER_BYTES` and two sections.

    Raises:
        ConfigurationError: no such coding or dtype.
        ValueError: a value is not finite or overflows `value_dtype`, the indices are not strictly increasing within
            the vector, or the length or `examples` is out of range.
    """
    if index_coding not in INDEX_CODINGS:
        raise unknown_name("index coding", index_coding, INDEX_CODINGS)
    if value_dtype not in _DTYPES:
        raise unknown_name("value dtype", str(value_dtype).removeprefix("torch."), VALUE_DTYPES)
    length = len(part) if isinstance(part, bytes) else part.length
    if not (0 <= length < _LIMIT and 0 <= examples < _LIMIT):
        raise ValueError(f"a payload holds lengths and examples below 2**32, got {length} and {examples}")
    dtype = _DTYPES.index(value_dtype) if isinstance(part, SparseVector) else _NO_VALUES
    kept, values = 0, memoryview(b"")
    if isinstance(part, bytes):
        coding, parameter, section = "raw", 0, part
    elif isinstance(part, IndexSet):
        kept = len(part.indices)
        coding, parameter, section = _write_indices(part.indices, length, "auto", ("bitmask", "rice"), 0)
    else:
        kept = part.count
        coding, parameter, section = "dense", 0, b""
        if part.indices is not None:
            coding, parameter, section = _write_indices(
                part.indices, length, index_coding, INDEX_CODINGS[1:], value_dtype.itemsize
            )
        values = _write_values(part.to_dense() if coding == "dense" else part.values, value_dtype)
    header = _Header(
        magic=_MAGIC,
        coding=_CODINGS.index(coding),
        dtype=dtype,
        rice_parameter=parameter,
        length=length,
        kept=kept,
        examples=examples,
        index_bytes=len(section),
    )
    return b"".join((_HEADER.pack(*header), section, values))


def decode(payload: bytes | bytearray | memoryview) -> tuple[SparseVector, int]:
    """Reads one vector that `encode` wrote; safe on any bytes, in memory and time proportional to how many there are.

    Args:
        payload: exactly one payload, nothing after it.

    Returns:
        The vector, on the CPU, float64 where it was sent so and float32 otherwise; and the number of examples.

    Raises:
        PayloadError: the bytes are no payload of a vector, or hold a value that is not finite.
    """
    part, examples = decode_part(payload)
    if not isinstance(part, SparseVector):
        raise PayloadError("payload holds no values")
    return part, examples


def decode_part(payload: bytes | bytearray | memoryview) -> tuple[Part, int]:
    """As `decode`, for a payload that may hold anything that `encode` takes."""
    data = memoryview(payload).cast("B")
    header = _read_header(data)
    values_start = HEADER_BYTES + header.index_bytes
    if len(data) != header.payload_bytes:
        raise PayloadError(f"payload has {len(data)} bytes, its header says {header.payload_bytes}")
    coding = _CODINGS[header.coding]
    if coding == "raw":
        return bytes(data[HEADER_BYTES:values_start]), header.examples
    section = np.frombuffer(data[HEADER_BYTES:values_start], np.uint8)
    indices = None
    if coding == "bitmask":
        indices = torch.from_numpy(_read_bitmask(section, header))
    elif coding == "rice":
        indices = torch.from_numpy(_read_rice(section, header))
    if header.dtype == _NO_VALUES:
        assert indices is not None
        return IndexSet(header.length, indices), header.examples
    values = _read_values(data[values_start:], _DTYPES[header.dtype])
    return SparseVector(header.length, values, indices), header.examples


def decode_message(message: bytes | bytearray | memoryview) -> tuple[list[Part], int]:
    """Reads the payloads of a message.

    Args:
        message: any number of payloads, one after another.

    Returns:
        What they hold, and the number of examples that the first names, 0 without one.

    Raises:
        PayloadError: the bytes are no message.
    """
    found = [decode_part(payload) for payload in _payloads(message)]
    return [part for part, _ in found], found[0][1] if found else 0


def values_in(message: bytes | bytearray | memoryview) -> int:
    """Reads how many values the sender kept: what a convention that charges values alone counts.

    Args:
        message: any number of payloads, one after another.

    Raises:
        PayloadError: the bytes are no message.
    """
    headers = [_read_header(payload) for payload in _payloads(message)]
    return sum(header.kept for header in headers if header.dtype != _NO_VALUES)


def _payloads(message: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """Cuts a message into its payloads."""
    data = memoryview(message).cast("B")
    while data:
        size = _read_header(data).payload_bytes
        if size > len(data):
            raise PayloadError(f"payload has {len(data)} bytes, its header says {size}")
        yield data[:size]
        data = data[size:]


def _read_header(data: memoryview) -> _Header:
    """Reads a payload's header and checks it against itself."""
    if len(data) < HEADER_BYTES:
        raise PayloadError(f"payload of {len(data)} bytes is shorter than a header of {HEADER_BYTES}")
    header = _Header._make(_HEADER.unpack(data[:HEADER_BYTES]))
    if header.magic != _MAGIC:
        raise PayloadError(f"payload starts with {header.magic!r}, expected {_MAGIC!r}")
    if header.coding >= len(_CODINGS) or (header.dtype >= len(_DTYPES) and header.dtype != _NO_VALUES):
        raise PayloadError(f"payload has unknown index coding {header.coding} or value dtype {header.dtype}")
    coding = _CODINGS[header.coding]
    if coding == ("dense" if header.dtype == _NO_VALUES else "raw"):
        raise PayloadError(f"payload has value dtype {header.dtype} under index coding {coding}")
    if header.rice_parameter > (_MAX_RICE_PARAMETER if coding == "rice" else 0):
        raise PayloadError(f"payload has Rice parameter {header.rice_parameter} under index coding {coding}")
    if header.kept > header.length:
        raise PayloadError(f"payload keeps {header.kept} entries of a vector of {header.length}")
    expected = {"dense": 0, "bitmask": _bytes(header.length), "raw": header.length}.get(coding, header.index_bytes)
    if header.index_bytes != expected:
        raise PayloadError(f"payload has {header.index_bytes} index bytes for a {coding} vector of {header.length}")
    return header


def _gaps(indices: np.ndarray, length: int) -> np.ndarray:
    """How many entries are skipped before each index: int64 (k,), none negative."""
    gaps = np.diff(indices, prepend=-1) - 1
    if len(indices) and (gaps.min() < 0 or indices[-1] >= length):
        raise ValueError(f"indices are not strictly increasing within a vector of {length}")
    return gaps


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _write_indices(
    indices: Tensor, length: int, asked: str, codings: Sequence[str], value_bytes: int
) -> tuple[str, int, bytes]:
    """The coding of an index section, its Rice parameter, and the section; "auto" takes the smallest of some."""
    places = indices.cpu().numpy()
    gaps = _gaps(places, length)
    parameter, rice_bits = _rice_parameter(gaps)
    kept = len(places) * value_bytes
    sizes = {"dense": length * value_bytes, "bitmask": _bytes(length) + kept, "rice": _bytes(rice_bits) + kept}
    coding = min(codings, key=sizes.__getitem__) if asked == "auto" else asked  # of equals the first
    if coding == "bitmask":
        return coding, 0, _write_bitmask(places, length)
    if coding == "rice":
        return coding, parameter, _write_rice(gaps, parameter, rice_bits)
    return coding, 0, b""


def _rice_parameter(gaps: np.ndarray) -> tuple[int, int]:
    """The parameter of fewest bits (of equals the smallest), and how many bits the section has under it.

    One more low bit costs every gap one bit and saves about half of the unary zeros, less each time: the size is
    convex in the parameter, so the first step that does not help ends the search.
    """
    parameter, zeros = 0, int(gaps.sum())
    while True:
        gaps = gaps >> 1
        fewer = int(gaps.sum())
        if zeros - fewer <= len(gaps):
            return parameter, zeros + len(gaps) * (parameter + 1)
        parameter, zeros = parameter + 1, fewer


def _write_bitmask(indices: np.ndarray, length: int) -> bytes:
    kept = np.zeros(length, dtype=bool)
    kept[indices] = True
    return np.packbits(kept).tobytes()


def _read_bitmask(section: np.ndarray, header: _Header) -> np.ndarray:
    indices = np.flatnonzero(np.unpackbits(section).view(bool))
    if len(indices) != header.kept or (len(indices) and indices[-1] >= header.length):
        raise PayloadError(f"bitmask does not mark {header.kept} of {header.length} entries")
    return indices


def _write_rice(gaps: np.ndarray, parameter: int, total_bits: int) -> bytes:
    count = len(gaps)
    bits = np.zeros(total_bits, dtype=np.uint8)
    for plane in range(parameter):
        bits[plane * count : (plane + 1) * count] = (gaps >> plane) & 1
    ends = np.cumsum((gaps >> parameter) + 1) - 1  # where each unary number has its one
    bits[parameter * count + ends] = 1
    return np.packbits(bits).tobytes()


def _read_rice(section: np.ndarray, header: _Header) -> np.ndarray:
    """Indices int64 (k,), increasing by construction; checks that they end within the vector, and the section."""
    count, parameter = header.kept, header.rice_parameter
    bits = np.unpackbits(section)
    planes, unary = bits[: parameter * count], bits[parameter * count :]
    if len(planes) < parameter * count or np.count_nonzero(unary) != count:
        raise PayloadError(f"index section does not hold {count} gaps")
    ends = np.flatnonzero(unary.view(bool))
    used = int(ends[-1]) + 1 if count else 0
    if len(unary) - used >= 8:
        raise PayloadError("index section goes on after the last gap")
    if used - count > header.length >> parameter:  # also keeps the shift below within 64 bits
        raise PayloadError(f"indices do not fit a vector of {header.length}")
    order = np.arange(count)
    low_bits = np.zeros(count, dtype=np.int64)
    for plane in range(parameter):
        low_bits |= planes[plane * count : (plane + 1) * count].astype(np.int64) << plane
    indices = ((ends - order) << parameter) + np.cumsum(low_bits) + order
    if count and indices[-1] >= header.length:
        raise PayloadError(f"indices do not fit a vector of {header.length}")
    return indices


def _write_values(values: Tensor, dtype: torch.dtype) -> memoryview:
    """The values as they travel; not copied where they are so already, as they may be a whole backbone."""
    rounded = values.detach().cpu().to(dtype).contiguous()
    finite = rounded.isfinite()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"{int((~finite).sum())} of {len(values)} values are not finite as {str(dtype).removeprefix('torch.')}, "
            f"the first ({values[first].item()}) at position {first}; send a wider value dtype or look for divergence"
        )
    bits = rounded.view(_INTEGERS[dtype.itemsize]).numpy()
    return bits.astype(f"<i{dtype.itemsize}", copy=False).view(np.uint8).data


def _read_values(data: memoryview, dtype: torch.dtype) -> Tensor:
    bits = np.frombuffer(data, f"<i{dtype.itemsize}").astype(f"=i{dtype.itemsize}")  # a copy: torch wants to own it
    values = torch.from_numpy(bits).view(dtype)
    values = values if dtype == torch.float64 else values.float()
    if not np.isfinite(values.numpy()).all():
        raise PayloadError("payload holds values that are not finite")
    return values
