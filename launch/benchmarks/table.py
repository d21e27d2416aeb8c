"""How `fedsim bench` shows what it measured."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 130
"""Of the table in a file, where nobody says how wide it may be."""


def print_table(rows: Sequence[Mapping[str, Any]], repeats: int, threads: int) -> None:
    """Prints the rows, and what must be known to read them.

    Args:
        rows: of every work and contestant; one with a note was not measured, for that reason.
        repeats: timed rounds of each.
        threads: CPU threads of each worker.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for name in ("work", "who"):
        table.add_column(name, no_wrap=True)
    for name in ("threads", "client steps/s", "ratio to bare", "ratio to pfl", "peak memory (MB)"):
        table.add_column(name, justify="right")
    for before, row in zip([{"work": None}, *rows], rows, strict=False):
        named = "" if row["work"] == before["work"] else row["work"], row["who"], str(row["threads"])
        if "note" in row:
            table.add_row(*named, "not installed")
            continue
        to_pfl = "" if row["ratio_to_pfl"] is None else f"{row['ratio_to_pfl']:.3f}"
        numbers = (f"{row['client_steps_per_second']:.1f}", f"{row['ratio_to_bare']:.3f}", to_pfl)
        table.add_row(*named, *numbers, f"{row['peak_memory_bytes'] / 1e6:.0f}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table)
    for told in dict.fromkeys(f"{row['who']}: {row['note']}" for row in rows if "note" in row):
        console.print(told, highlight=False, soft_wrap=True)
    for row in rows:
        if row["who"] == "fedsim_two_workers" and row["ratio_to_sequential"] is not None:
            said = f"two workers do {row['ratio_to_sequential']:.3f} times the client steps of one"
            console.print(f"{row['work']}: {said}", highlight=False, soft_wrap=True)
    if _cores() < 2 * threads:
        told = f"two workers of {threads} thread(s) share {_cores()} core(s): no measure of how work spreads"
        console.print(told, highlight=False, soft_wrap=True)
    console.print(
        f"medians of {repeats} alternating rounds; {threads} thread(s) a worker, "
        f"{_cores()} cores ({platform.machine()}), torch {torch.__version__}, Python {platform.python_version()}",
        highlight=False,
        soft_wrap=True,
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
