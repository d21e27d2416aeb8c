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
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"    \toprule",
        *_row(header),
        r"    \midrule",
        *(line for row in body for line in _row(row)),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> list[str]:
    return [f"    {' & '.join(cells)} \\\\"]
