"""What a fuzzer does to a valid input: to its bytes, and to the tree of its JSON or YAML."""

import copy
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NUMBERS = (0, 1, -1, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**400)
LEAVES: tuple[Any, ...] = (
    *NUMBERS,
    *(-number for number in NUMBERS),
    *(0.5, -0.5, 1e308, 5e-324, math.inf, -math.inf, math.nan),
    *(True, False, None, [], {}, [[]], {"": None}),
    *("", " ", "0", "nan", "null", "--", "\0", "ä☃\n", "../..", "a.b", "a" * 10_000, "9" * 5_000, "2001-99-99", "a: b"),
)
INSERTED = (b"[" * 100_000, b'{"a":' * 20_000, b"9" * 10_000, b"a" * 100_000, b"\0" * 64, b"&a [*a]", b"- " * 5_000)

Random = np.random.Generator


def damage(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Damages bytes in one to four places.

    Args:
        data: valid.
        others: to splice with.
        random: of the draws.
    """
    for _ in range(int(random.integers(1, 5))):
        data = _BYTE_CHANGES[int(random.integers(len(_BYTE_CHANGES)))](data, others, random)
    return data


def twist(tree: Any, random: Random) -> Any:
    """Changes a tree of dicts, lists and leaves in one to three places; the original stays."""
    held = {"root": copy.deepcopy(tree)}
    for _ in range(int(random.integers(1, 4))):
        places = _places(held)
        container, key = places[int(random.integers(len(places)))]
        _change(container, key, places, random)
        if "root" not in held:
            return None
    return held["root"]


def nested(levels: int) -> Any:
    """So many lists, one in another."""
    made: Any = 0
    for _ in range(levels):
        made = [made]
    return made


def leaf(random: Random) -> Any:
    """Draws a value that nobody expects."""
    at = int(random.integers(len(LEAVES) + 1))
    return nested(int(random.integers(2, 200))) if at == len(LEAVES) else LEAVES[at]


def _places(held: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree: what holds it, and under which key."""
    found: list[tuple[Any, Any]] = []
    left = [held]
    while left and len(found) < 2_000:
        container = left.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        found += [(container, key) for key in keys]
        left += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return found


def _change(container: Any, key: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    kind = int(random.integers(6))
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        name = str(leaf(random))[:200] if random.integers(2) else f"{key}x"
        container[name] = container.pop(key)
    elif kind == 2:
        other, at = places[int(random.integers(len(places)))]
        container[key] = copy.deepcopy(other[at])
    elif kind == 3:
        container[key] = [container[key]]
    elif kind == 4 and isinstance(container[key], list) and container[key]:
        container[key] = container[key] * int(random.integers(2, 4))
    else:
        container[key] = leaf(random)


def _place(data: bytes, random: Random) -> int:
    return int(random.integers(len(data) + 1))


def _flip(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    changed = bytearray(data or b"\0")
    changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _overwrite(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """By a number as headers hold them, as often as not near the start, where headers are."""
    number = NUMBERS[int(random.integers(len(NUMBERS)))]
    packed = struct.pack("<Q", number % 2**64)[: int(random.choice([1, 2, 4, 8]))]
    near = bool(random.integers(2))
    at = int(random.integers(min(len(data), 64) + 1)) // 4 * 4 if near else _place(data, random)
    return data[:at] + packed + data[at + len(packed) :]


def _cut(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    return data[: _place(data, random)]


def _delete(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    first, last = sorted((_place(data, random), _place(data, random)))
    return data[:first] + data[min(last, first + 64) :]


def _repeat(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    first, last = sorted((_place(data, random), _place(data, random)))
    return data[:last] + data[first:last] + data[last:] if last - first < 100_000 else data


def _insert(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at = _place(data, random)
    kind = int(random.integers(2 * len(INSERTED)))
    given = INSERTED[kind] if kind < len(INSERTED) else random.bytes(int(random.integers(1, 32)))
    return data[:at] + given + data[at:]


def _splice(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    other = others[int(random.integers(len(others)))]
    return data[: _place(data, random)] + other[_place(other, random) :]


_BYTE_CHANGES: tuple[Callable[[bytes, Sequence[bytes], Random], bytes], ...] = (
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _delete,
    _repeat,
    _insert,
    _splice,
)
