"""A partition in words: how it was made, how the clients differ in examples, users and labels, what the paper had."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from data_partitions.dataset import FederatedData
from data_partitions.paper_tables import PAPER_ROWS, disagreement
from data_partitions.partition import Partition
from data_partitions.statistics import label_skew, users_per_client

COLUMNS = ("smallest", "25 %", "median", "75 %", "largest", "mean", "the whole")
MEANING = (
    "Empty clients count for examples only. Means of the rows below examples weigh a client by its examples. Distance "
    "is total variation: the fraction of a client's examples that would have to change label to be like the whole."
)


@dataclass(frozen=True)
class Subject:
    """A partition, and what is known about what it deals.

    Attributes:
        data: the data that it deals; None where nobody named them.
        notes: what the user should know.
    """

    partition: Partition
    data: FederatedData | None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each training example (N,); None where there is none, or one for all."""
        if self.data is None or (self.data.classes is None and "labels" not in self.data.train):
            return None
        classes = self.data.train["labels"].numpy() if self.data.classes is None else self.data.classes
        return classes if classes.ndim == 1 and (classes != classes[0]).any() else None

    @property
    def heading(self) -> list[str]:
        """Two lines: how it was made, and how much it deals."""
        arguments = dict(sorted(self.partition.arguments.items()))
        name, data, seed = (arguments.pop(key, None) for key in ("partitioner", "data", "seed"))
        options = ", ".join(f"{key} {value}" for key, value in arguments.items())
        made = f"{name or 'a partition'}{f' ({options})' if options else ''}"
        first = ", ".join([*([str(data)] if data else []), made, *([f"seed {seed}"] if seed is not None else [])])
        clients, empty = self.partition.clients, int((self.partition.sizes == 0).sum())
        second = f"{_counted(len(self.partition.indices), 'example')} over {_counted(clients, 'client')}"
        return [first, f"{second}, {empty:,} of them empty" if empty else second]


def describe(subject: Subject, console: Console) -> None:
    """Prints how it was made, a row for each thing in which clients differ, and the paper's rows of these data."""
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    made, dealt = subject.heading
    task = "" if subject.data is None else f"; {subject.data.task}{' without labels' if subject.labels is None else ''}"
    console.print(f"{made}\n{dealt}{task}", **plain)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("of a client", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right")
    for row in _rows(subject):
        table.add_row(*row)
    console.print(table)
    console.print(MEANING, style="dim", highlight=False)
    _compare(subject, console)
    for note in subject.notes:
        console.print(note, **plain)


def _compare(subject: Subject, console: Console) -> None:
    """Prints what the paper's tables say of these data, beside what is here; nothing where they do not know them."""
    name = str(subject.partition.arguments.get("data"))
    if name not in PAPER_ROWS:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(name, no_wrap=True)
    for title in ("clients", "examples", "classes"):
        table.add_column(title, justify="right")
    table.add_column("metric or task")
    for row in PAPER_ROWS[name]:
        table.add_row(f"FLASC, Table {row.table}", row.clients, row.examples, row.classes, row.measure)
    numbers = (int((subject.partition.sizes > 0).sum()), len(subject.partition.indices))
    task = "-" if subject.data is None else subject.data.task
    table.add_row("here", *(f"{number:,}" for number in numbers), _classes(subject), task)
    console.print(table)
    if (line := disagreement(name)) is not None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _classes(subject: Subject) -> str:
    """How many classes a model tells apart: the labels' names, or those that occur; next tokens are not counted."""
    if subject.data is None or subject.data.task == "language_modelling":
        return "-"
    names = len(subject.data.label_names)
    return str(names or (len(np.unique(subject.labels)) if subject.labels is not None else "-"))


def _rows(subject: Subject) -> list[list[str]]:
    """The table: examples, and where they are known users and labels."""
    partition, sizes = subject.partition, subject.partition.sizes
    rows = [_row("examples", sizes, None, len(partition.indices), 1)]
    held = sizes[sizes > 0]
    if not len(held):
        return rows
    if subject.data is not None and subject.data.user is not None:
        users, everybody = users_per_client(partition, subject.data.user)
        rows.append(_row("users", users, held, everybody, 1))
    if subject.labels is not None:
        skew = label_skew(partition, subject.labels)
        rows += [
            _row("labels", skew.labels, held, len(skew.values), 1),
            _row("entropy (bits)", skew.entropy, held, skew.whole_entropy, 2),
            _row("distance", skew.distance, held, 0.0, 2),
            _row("largest share", skew.largest_share, held, skew.whole_largest_share, 2),
        ]
    return rows


def _row(name: str, values: np.ndarray, weights: np.ndarray | None, whole: float, digits: int) -> list[str]:
    five = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    numbers = [*five, float(np.average(values, weights=weights)), whole]
    texts = [f"{number:,.{digits}f}" for number in numbers]
    return [name, *(text.removesuffix(".0") if digits == 1 else text for text in texts)]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
