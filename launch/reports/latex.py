"""The table of a report in LaTeX, with booktabs."""

from collections.abc import Mapping

from launch.reports.findings import Findings
from launch.reports.table import meaning, table_cells

ESCAPES: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """Text as LaTeX sets it, letter by letter."""
    return "".join(ESCAPES.get(sign, sign) for sign in text)


def latex(found: Findings) -> str:
    """The report's table as a table environment: what its cells mean is the caption, notes are comments."""
    header, *body = [[escaped(cell) for cell in row] for row in table_cells(found)]
    caption = " ".join(escaped(sentence) for sentence in meaning(found)).replace(r"10\textasciicircum{}6", "$10^6$")
    lines = [
        r"% needs \usepackage{booktabs}",
        *(f"% {' '.join(note.split())}" for note in found.notes),
        r"\begin{table}",
        r"  \centering",
        r"  \footnotesize\setlength{\tabcolsep}{3pt}",
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"    \toprule",
        _row([_stacked(title) for title in header]),
        r"    \midrule",
        "\n    \\addlinespace\n".join(_row([label, *map(_spread_below, cells)]) for label, *cells in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _stacked(title: str) -> str:
    """A column's title on lines of its own, first word, rest and unit, so that a column is as wide as its cells."""
    words, bracket, unit = title.partition(" (")
    first, _, rest = words.partition(" ")
    return _shortstack([first, rest, f"({unit}" if bracket else ""])


def _spread_below(cell: str) -> str:
    """What stands in brackets beneath the rest, in small; words beneath each other."""
    value, bracket, spread = cell.partition(" (")
    return _shortstack([*value.split(), rf"\scriptsize ({spread}" if bracket else ""])


def _shortstack(lines: list[str]) -> str:
    shown = [line for line in lines if line]
    return r"\shortstack[r]{" + r" \\ ".join(shown) + "}" if len(shown) > 1 else "".join(shown)


def _row(cells: list[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"
