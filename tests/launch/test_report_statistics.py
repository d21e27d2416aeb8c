"""Significance over seeds, and the table in LaTeX."""

import io
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from launch.reports.latex import escaped
from launch.reports.report import report
from launch.reports.significance import compare, welch
from launch.reports.table import p_cell
from tests.launch.test_report import table, write_run


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.reports.report.render", lambda figure, kind: b"")


def slow_welch(one: Sequence[float], other: Sequence[float]) -> float:
    """By the textbook: Welch and Satterthwaite's degrees of freedom, and Student's density summed up to t."""
    means = [sum(values) / len(values) for values in (one, other)]
    parts = [
        sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
        for values, mean in zip((one, other), means, strict=True)
    ]
    t = abs(means[0] - means[1]) / math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (one, other), strict=True))
    constant = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    steps = 20_000
    inside = sum(
        constant * (1 + (t * (step + 0.5) / steps) ** 2 / freedom) ** (-(freedom + 1) / 2) for step in range(steps)
    )
    return 1 - 2 * inside * t / steps


@pytest.mark.parametrize(
    ("one", "other"),
    [([0.9, 0.84, 0.6], [0.5, 0.55, 0.52]), ([1.0, 2.0], [5.0, 5.5, 7.0, 9.0]), ([3.0, 3.0], [3.1, 3.3])],
)
def test_p_values_are_the_textbooks(one: list[float], other: list[float]) -> None:
    assert welch(one, other) == pytest.approx(slow_welch(one, other), abs=1e-6)
    assert welch(one, other) == welch(other, one)


def test_each_is_compared_with_the_best_of_those_that_have_seeds() -> None:
    """The best of all has one seed: nobody can be compared with it."""
    finals = {"one": [0.99], "good": [0.9, 0.92], "poor": [0.5, 0.6], "broken": [0.9, float("nan")]}
    found = compare(finals, higher=True)
    assert found is not None
    assert (found.reference, set(found.p_values), found.seeds) == ("good", {"poor"}, 2)
    lowest = compare(finals, higher=False)
    assert lowest is not None
    assert (lowest.reference, set(lowest.p_values)) == ("poor", {"good"})


def test_what_cannot_be_compared_is_not() -> None:
    assert compare({"a": [0.9, 0.8], "b": [0.5]}, higher=True) is None
    assert compare({"a": [0.9, 0.9], "b": [0.5, 0.5]}, higher=True) is None
    assert compare({}, higher=True) is None


def test_p_cells() -> None:
    assert [p_cell(value) for value in (None, 0.0004, 0.0123, 0.456)] == ["–", "<0.001", "0.012", "0.46"]


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    for seed, last in enumerate((0.90, 0.91)):
        write_run(tmp_path / f"a{seed}", "LoRA_A & 100 %", [0.1, last], seed=seed)
        write_run(tmp_path / f"b{seed}", "FLASC", [0.1, last - 0.3], seed=seed)
    write_run(tmp_path / "c", "single", [0.1, 0.7])
    write_run(tmp_path / "d", "killed", [0.1], finished=False)
    report([tmp_path], ("accuracy", 0.8), None, Console(file=io.StringIO(), width=200))
    return tmp_path


def test_p_values_stand_in_every_table_with_what_they_prove(compared: Path) -> None:
    p_value = slow_welch([0.90, 0.91], [0.60, 0.61])
    rows = table(compared)
    assert float(rows["FLASC"]["p_value"]) == pytest.approx(p_value, abs=1e-6)
    assert rows["FLASC"]["p_against"] == "LoRA_A & 100 %"
    assert rows["single"]["p_value"] == rows["LoRA_A & 100 %"]["p_value"] == ""
    text = (compared / "report.md").read_text()
    assert f"| FLASC | 2 | 60.5 (60.0–61.0) | 60.5 (60.0–61.0) | {p_cell(p_value)} |" in text
    assert "| single | 1 | 70.0 | 70.0 | – |" in text
    assert "Few seeds prove little (here 2)" in text
    assert "not corrected" not in text  # there is one comparison


def test_the_latex_table_is_whole(compared: Path) -> None:
    """Environments nest, every row has as many cells, and what LaTeX reads is escaped."""
    lines = (compared / "report.tex").read_text().splitlines()
    opened: list[str] = []
    for line in lines:
        word = line.strip()
        if word.startswith(r"\begin{"):
            opened.append(word.split("{")[1].split("}")[0])
        elif word.startswith(r"\end{"):
            assert word == rf"\end{{{opened.pop()}}}"
    assert opened == []
    rows = [line for line in lines if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in rows] == [7] * 4
    assert r"& \shortstack[r]{final \\ accuracy \\ (\%)} &" in rows[0]
    assert r"  \begin{tabular}{lrrrrrrr}" in lines
    assert r"    LoRA\_A \& 100 \% & 2 & \shortstack[r]{90.5 \\ \scriptsize (90.0--91.0)} & " in "\n".join(rows)
    assert any("Few seeds prove little" in line for line in lines if line.strip().startswith(r"\caption"))
    assert f"% left out, not finished: {compared / 'd'}" in lines


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex, with booktabs (texlive-latex-recommended)")
def test_latex_sets_the_table(compared: Path) -> None:
    """On a page of the article class, it is no wider than the text."""
    (compared / "page.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{report}\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "page"], cwd=compared, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
    assert (compared / "page.pdf").exists()


def test_escapes() -> None:
    assert escaped(r"a_b {50 %} $5 #1 x^2 \n ~") == (
        r"a\_b \{50 \%\} \$5 \#1 x\textasciicircum{}2 \textbackslash{}n \textasciitilde{}"
    )
    assert escaped("<0.001 | 1–2") == r"\textless{}0.001 \textbar{} 1--2"
