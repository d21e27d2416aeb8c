"""Top-k and the codec again, one entry and one bit at a time, in plain Python: slow, and meant to be read.

Vectors are lists of floats and indices lists of ints (None for a dense vector). Payloads are the codec's, byte by byte.
"""

import struct
from collections.abc import Callable, Sequence

CODINGS = ("dense", "bitmask", "rice")
DTYPES = ("float32", "bfloat16", "float16", "float64")
HEADER_BYTES = 23
FORMATS = {"float32": "<f", "float16": "<e", "float64": "<d"}


def naive_topk(vector: Sequence[float], k: int) -> list[int]:
    """Indices of the k largest absolute values, increasing; a stable sort keeps the lowest of equals first."""
    order = sorted(range(len(vector)), key=lambda index: -abs(vector[index]))
    return sorted(order[:k])


def naive_encode(
    length: int, indices: Sequence[int] | None, values: Sequence[float], coding: str, dtype: str, examples: int
) -> bytes:
    """Writes every allowed payload in full and returns the smallest; of equals the first of `CODINGS`."""
    allowed = CODINGS if coding == "auto" else (coding,)
    if indices is None:
        return _assemble("dense", dtype, 0, length, values, examples, "")
    payloads = []
    for name in allowed:
        if name == "dense":
            whole = [0.0] * length
            for index, value in zip(indices, values, strict=True):
                whole[index] = value
            payloads.append(_assemble(name, dtype, 0, length, whole, examples, "", kept=len(indices)))
        elif name == "bitmask":
            bits = "".join("1" if index in set(indices) else "0" for index in range(length))
            payloads.append(_assemble(name, dtype, 0, length, values, examples, bits))
        else:
            written = [_rice_bits(indices, parameter) for parameter in range(32)]
            parameter = min(range(32), key=lambda candidate: len(written[candidate]))
            payloads.append(_assemble(name, dtype, parameter, length, values, examples, written[parameter]))
    return min(payloads, key=len)


def naive_decode(payload: bytes) -> tuple[int, list[int] | None, list[float], int]:
    """Reads a payload that is known to be sound: length, indices, values, examples."""
    coding, dtype, parameter = CODINGS[payload[4]], DTYPES[payload[5]], payload[6]
    length, count, examples, index_bytes = (
        int.from_bytes(payload[start : start + 4], "little") for start in (7, 11, 15, 19)
    )
    section, rest = payload[23 : 23 + index_bytes], payload[23 + index_bytes :]
    bits = "".join(f"{byte:08b}" for byte in section)
    indices = None
    if coding == "bitmask":
        indices = [index for index in range(length) if bits[index] == "1"]
    elif coding == "rice":
        indices = _rice_indices(bits, count, parameter)
    held = length if coding == "dense" else count
    size = len(rest) // held if held else 1
    values = [_read_value(rest[start : start + size], dtype) for start in range(0, len(rest), size)]
    return length, indices, values, examples


def payload_of(
    coding: str, dtype: str, parameter: int, length: int, count: int, examples: int, section: bytes, values: bytes
) -> bytes:
    """Any payload at all, sound or not, from its fields."""
    numbers = (length, count, examples, len(section))
    header = b"FSV1" + bytes([CODINGS.index(coding), DTYPES.index(dtype), parameter])
    return header + b"".join(number.to_bytes(4, "little") for number in numbers) + section + values


def _assemble(
    coding: str,
    dtype: str,
    parameter: int,
    length: int,
    values: Sequence[float],
    examples: int,
    bits: str,
    kept: int | None = None,
) -> bytes:
    padded = bits + "0" * (-len(bits) % 8)
    section = bytes(int(padded[start : start + 8], 2) for start in range(0, len(padded), 8))
    written = b"".join(_write_value(value, dtype) for value in values)
    return payload_of(
        coding, dtype, parameter, length, len(values) if kept is None else kept, examples, section, written
    )


def _rice_bits(indices: Sequence[int], parameter: int) -> str:
    previous, gaps = -1, []
    for index in indices:
        gaps.append(index - previous - 1)
        previous = index
    planes = ["1" if gap >> plane & 1 else "0" for plane in range(parameter) for gap in gaps]
    unary = ["0" * (gap >> parameter) + "1" for gap in gaps]
    return "".join(planes + unary)


def _rice_indices(bits: str, count: int, parameter: int) -> list[int]:
    indices: list[int] = []
    place, previous = parameter * count, -1
    for number in range(count):
        quotient = 0
        while bits[place] == "0":
            quotient, place = quotient + 1, place + 1
        place += 1
        low = sum(int(bits[plane * count + number]) << plane for plane in range(parameter))
        previous += (quotient << parameter) + low + 1
        indices.append(previous)
    return indices


def _write_value(value: float, dtype: str) -> bytes:
    if dtype != "bfloat16":
        return struct.pack(FORMATS[dtype], value)
    bits = int.from_bytes(struct.pack("<f", value), "little")
    below, rest = bits >> 16, bits & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and below & 1 == 1)  # to nearest, ties to even
    return (below + up).to_bytes(2, "little")


def _read_value(data: bytes, dtype: str) -> float:
    if dtype == "bfloat16":
        dtype, data = "float32", b"\0\0" + data
    unpack: Callable[[str, bytes], tuple[float]] = struct.unpack
    return unpack(FORMATS[dtype], data)[0]
