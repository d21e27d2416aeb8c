"""What FLASC prints about its data sets, to be held against what was loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A data set's row in one of the paper's tables, as printed there.

    Attributes:
        table: the table's number.
        clients: how many clients, rounded by the paper, such as "20K".
        examples: how many training examples, likewise.
        classes: how many classes; for next-token prediction the tokens of the vocabulary.
        measure: the metric in Table 2, the task in Table 4.
    """

    table: int
    clients: str
    examples: str
    classes: str
    measure: str


PAPER_ROWS: dict[str, tuple[PaperRow, ...]] = {
    "CIFAR10": (
        PaperRow(2, "500", "50K", "10", "accuracy"),
        PaperRow(4, "500", "50K", "10", "image classification"),
    ),
    "TwentyNewsgroups": (
        PaperRow(2, "350", "20K", "20", "accuracy"),
        PaperRow(4, "350", "20K", "20", "sequence classification"),
    ),
    "Reddit": (
        PaperRow(2, "20K", "2M", "50257", "perplexity"),
        PaperRow(4, "32K", "1.1M", "50257", "next token prediction"),
    ),
    "Subreddits": (
        PaperRow(2, "100", "35K", "50", "accuracy"),
        PaperRow(4, "100", "35K", "50", "sequence classification"),
    ),
    "FLAIR": (
        PaperRow(2, "41K", "345K", "17", "F1 score"),
        PaperRow(4, "41K", "345K", "17", "object detection (multilabel)"),
    ),
}
"""Rows by the name of the data set's class.

Source: Kuo et al., FLASC, Table 2 (Section 4) and Table 4 (Appendix B).
"""


def disagreement(name: str) -> str | None:
    """Says where the paper's tables differ on a data set.

    Args:
        name: of the data set's class.

    Returns:
        A line such as "Tables 2 and 4 disagree on Reddit: 20K or 32K clients"; None where they agree or
        know nothing of it.
    """
    rows = PAPER_ROWS.get(name, ())
    found = {what: [getattr(row, what) for row in rows] for what in ("clients", "examples", "classes")}
    differing = [f"{' or '.join(values)} {what}" for what, values in found.items() if len(set(values)) > 1]
    tables = " and ".join(str(row.table) for row in rows)
    return f"Tables {tables} disagree on {name}: {', '.join(differing)}" if differing else None
