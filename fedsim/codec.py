"""Sparse vectors as bytes: what travels, and what the ledger counts.

A payload is a header, the index section and the value section; numbers are little endian, bits fill each byte from
its highest. The header (`HEADER_BYTES` long):

    magic and version "FSV1" | index coding u8 | value dtype u8 | Rice parameter u8
    length u32 | entries kept u32 | examples u32 | bytes of the index section u32

Index sections, each padded with zero bits to whole bytes:

    dense    empty; every entry has a value, zero where it was not kept.
    bitmask  one bit per entry of the vector, set where a value is kept.
    rice     the gaps between indices (Rice, 1971), each split by the parameter r into quotient gap >> r and r low bits:
             first the low bits as r planes of a bit per gap, lowest plane first; then the quotients in unary, as many
             zeros and a one. Kept apart, both parts are read and written for all gaps at once.
"""

import struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import unknown_name
from fedsim.sparse import SparseVector

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
_CODINGS = INDEX_CODINGS[1:]  # the header stores positions here and among VALUE_DTYPES: append, never reorder
_DTYPES = tuple(VALUE_DTYPES.values())
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes, to carry the bits of a float
_MAX_RICE_PARAMETER = 31  # gaps are below 2**32, so that a larger one never pays


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


def encode(
    vector: SparseVector,
    index_coding: str = "auto",
    value_dtype: torch.dtype = torch.float32,
    examples: int = 0,
) -> bytes:
    """Writes a vector as bytes.

    Args:
        vector: what to send, on any device, fewer than 2**32 entries. One that is dense stays dense under every coding.
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
    if not (0 <= vector.length < _LIMIT and 0 <= examples < _LIMIT):
        raise ValueError(f"a payload holds lengths and examples below 2**32, got {vector.length} and {examples}")
    coding, parameter, section = "dense", 0, b""
    if vector.indices is not None:
        indices = vector.indices.cpu().numpy()
        gaps = _gaps(indices, vector.length)
        parameter, rice_bits = _rice_parameter(gaps)
        coding = index_coding
        if coding == "auto":
            coding = _smallest_coding(vector, rice_bits, value_dtype.itemsize)
        if coding == "bitmask":
            section = _write_bitmask(indices, vector.length)
        elif coding == "rice":
            section = _write_rice(gaps, parameter, rice_bits)
    values = vector.to_dense() if coding == "dense" else vector.values
    header = _Header(
        magic=_MAGIC,
        coding=_CODINGS.index(coding),
        dtype=_DTYPES.index(value_dtype),
        rice_parameter=parameter if coding == "rice" else 0,
        length=vector.length,
        kept=vector.count,
        examples=examples,
        index_bytes=len(section),
    )
    return b"".join((_HEADER.pack(*header), section, _write_values(values, value_dtype)))


def decode(payload: bytes | bytearray | memoryview) -> tuple[SparseVector, int]:
    """Reads what `encode` wrote; safe on any bytes, in memory and time proportional to how many there are.

    Args:
        payload: exactly one payload, nothing after it.

    Returns:
        The vector, on the CPU, float64 where it was sent so and float32 otherwise; and the number of examples.

    Raises:
        PayloadError: the bytes are no payload, or hold a value that is not finite.
    """
    data = memoryview(payload).cast("B")
    header = _read_header(data)
    values_start = HEADER_BYTES + header.index_bytes
    section = np.frombuffer(data[HEADER_BYTES:values_start], np.uint8)
    indices = None
    if _CODINGS[header.coding] == "bitmask":
        indices = torch.from_numpy(_read_bitmask(section, header))
    elif _CODINGS[header.coding] == "rice":
        indices = torch.from_numpy(_read_rice(section, header))
    values = _read_values(data[values_start:], _DTYPES[header.dtype])
    return SparseVector(header.length, values, indices), header.examples


def values_in(payload: bytes | bytearray | memoryview) -> int:
    """Reads how many values the sender kept: what a convention that charges values alone counts.

    Args:
        payload: exactly one payload.

    Raises:
        PayloadError: the bytes are no payload.
    """
    return _read_header(memoryview(payload).cast("B")).kept


def _read_header(data: memoryview) -> _Header:
    """Reads the header and checks it against itself and against how many bytes there are."""
    if len(data) < HEADER_BYTES:
        raise PayloadError(f"payload of {len(data)} bytes is shorter than a header of {HEADER_BYTES}")
    header = _Header._make(_HEADER.unpack(data[:HEADER_BYTES]))
    if header.magic != _MAGIC:
        raise PayloadError(f"payload starts with {header.magic!r}, expected {_MAGIC!r}")
    if header.coding >= len(_CODINGS) or header.dtype >= len(_DTYPES):
        raise PayloadError(f"payload has unknown index coding {header.coding} or value dtype {header.dtype}")
    coding = _CODINGS[header.coding]
    if header.rice_parameter > (_MAX_RICE_PARAMETER if coding == "rice" else 0):
        raise PayloadError(f"payload has Rice parameter {header.rice_parameter} under index coding {coding}")
    if header.kept > header.length:
        raise PayloadError(f"payload keeps {header.kept} entries of a vector of {header.length}")
    if coding != "rice" and header.index_bytes != (_bytes(header.length) if coding == "bitmask" else 0):
        raise PayloadError(f"payload has {header.index_bytes} index bytes for a {coding} vector of {header.length}")
    values = header.length if coding == "dense" else header.kept
    expected = HEADER_BYTES + header.index_bytes + values * _DTYPES[header.dtype].itemsize
    if len(data) != expected:
        raise PayloadError(f"payload has {len(data)} bytes, its header says {expected}")
    return header


def _gaps(indices: np.ndarray, length: int) -> np.ndarray:
    """How many entries are skipped before each index: int64 (k,), none negative."""
    gaps = np.diff(indices, prepend=-1) - 1
    if len(indices) and (gaps.min() < 0 or indices[-1] >= length):
        raise ValueError(f"indices are not strictly increasing within a vector of {length}")
    return gaps


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _smallest_coding(vector: SparseVector, rice_bits: int, value_bytes: int) -> str:
    """The coding of fewest bytes; of equals the first."""
    kept = vector.count * value_bytes
    sizes = {
        "dense": vector.length * value_bytes,
        "bitmask": _bytes(vector.length) + kept,
        "rice": _bytes(rice_bits) + kept,
    }
    return min(sizes, key=sizes.__getitem__)


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


def _write_values(values: Tensor, dtype: torch.dtype) -> bytes:
    rounded = values.detach().cpu().to(dtype).contiguous()
    finite = rounded.isfinite()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"{int((~finite).sum())} of {len(values)} values are not finite as {str(dtype).removeprefix('torch.')}, "
            f"the first ({values[first].item()}) at position {first}; send a wider value dtype or look for divergence"
        )
    bits = rounded.view(_INTEGERS[dtype.itemsize]).numpy()
    return bits.astype(f"<i{dtype.itemsize}", copy=False).tobytes()


def _read_values(data: memoryview, dtype: torch.dtype) -> Tensor:
    bits = np.frombuffer(data, f"<i{dtype.itemsize}").astype(f"=i{dtype.itemsize}")  # a copy: torch wants to own it
    values = torch.from_numpy(bits).view(dtype)
    values = values if dtype == torch.float64 else values.float()
    if not np.isfinite(values.numpy()).all():
        raise PayloadError("payload holds values that are not finite")
    return values
