"""What a run has reported so far, as its checkpoints keep it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Self

from fedsim.errors import ConfigurationError
from fedsim.ledger import Totals


@dataclass
class History:
    """What a run has reported so far; a checkpoint keeps it.

    Attributes:
        rows: of metrics.csv.
        ledger_position: bytes of ledger.csv.
        totals: the ledger's sums.
        seconds: spent so far.
        clients: trained so far.
        logged: since the last evaluation, the sum of each value times its examples, and of those examples.
        server_seconds: spent on aggregating and stepping.
        left_out_clients: whose work could not be used.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    ledger_position: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    clients: int = 0
    logged: dict[str, list[float]] = field(default_factory=dict)
    server_seconds: float = 0.0
    left_out_clients: int = 0

    @classmethod
    def read(cls, held: object) -> Self:
        """Reads what a checkpoint remembers.

        Args:
            held: from its JSON.

        Raises:
            ConfigurationError: it is not what a run leaves there.
        """
        if not isinstance(held, dict):
            raise ConfigurationError("history is missing")
        for name, value in held.items():
            if name not in _CHECKS or not _CHECKS[name](value):
                raise ConfigurationError(f"history has {str(name)[:40]!r}, which no run leaves so")
        return cls(**held)


def whole(value: object) -> bool:
    """Whether a value from JSON is a whole number of 0 or more that 64 bits can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _number(value: object) -> bool:
    if isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _seconds(value: object) -> bool:
    return isinstance(value, int | float) and _number(value) and math.isfinite(value) and value >= 0


def _rows(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, dict) and whole(row.get("round")) and all(v is None or _number(v) for v in row.values())
        for row in value
    )


def _totals(value: object) -> bool:
    names = {one.name for one in fields(Totals)}
    return isinstance(value, dict) and names >= value.keys() and all(map(whole, value.values()))


def _logged(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(sums, list) and len(sums) == 2 and all(map(_number, sums)) for sums in value.values()
    )


_CHECKS: dict[str, Callable[[object], bool]] = {
    "rows": _rows,
    "ledger_position": whole,
    "totals": _totals,
    "seconds": _seconds,
    "clients": whole,
    "logged": _logged,
    "server_seconds": _seconds,
    "left_out_clients": whole,
}
