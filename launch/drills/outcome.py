"""What a run left behind, as far as it must be the same whatever happened on the way."""

import csv
from pathlib import Path

Rows = list[dict[str, str]]


def table(path: Path, but: str = "") -> Rows:
    """A CSV's rows without one column."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != but} for row in csv.DictReader(file)]


def bits(run: Path) -> tuple[Rows, Rows, dict[str, bytes]]:
    """All that must be the same: metrics but for seconds, the ledger but for workers, adapter and changed backbone."""
    weights = {path.parent.name: path.read_bytes() for path in run.glob("*/*.safetensors")}
    return table(run / "metrics.csv", "seconds"), table(run / "ledger.csv", "worker"), weights
