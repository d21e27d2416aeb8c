"""A report as one HTML page that needs nothing beside it: table, figures, settings, what was left out."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from launch.reports.curves import short_key
from launch.reports.findings import Findings
from launch.reports.table import meaning, table_cells, target_title

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1d1d1d; font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; min-width: 9rem; position: sticky; left: 0; background: #fff; }
.results td + td { white-space: nowrap; }
thead th { border-bottom: 2px solid #1d1d1d; vertical-align: bottom; }
.settings td, .settings th { text-align: left; }
figure { margin: 0 0 1.5rem; }
figcaption, summary, .meaning { color: #555; font-size: 0.9rem; }
svg { display: block; width: 100%; min-width: 40rem; height: auto; }
li { overflow-wrap: anywhere; }
@media print {
  @page { size: A4; margin: 15mm; }
  body { font-size: 9pt; }
  main { padding: 0; max-width: none; }
  .wide { overflow: visible; }
  table, .meaning { font-size: 7.5pt; }
  th, td { padding-right: 0.4rem; }
  th:first-child, td:first-child { min-width: 0; position: static; }
  .results td + td { white-space: normal; }
  svg { min-width: 0; max-height: 24cm; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  details:not([open]) { display: none; }
}
"""


def page(found: Findings, drawings: Mapping[str, tuple[bytes, str]]) -> str:
    """The report as HTML without scripts, fonts or pictures from elsewhere.

    Args:
        found: what is reported.
        drawings: an SVG and what it shows in words, by name.
    """
    title = f"{_capital(found.metric)} of {_count(len(found.curves), 'configuration')}"
    runs = sum(len(curve.runs) for curve in found.curves)
    target = f"; target {target_title(found.metric, found.goal)}" if found.goal is not None else ""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    figures = "".join(_figure(name, svg, words) for name, (svg, words) in drawings.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    said = "".join(f'<p class="meaning">{escape(sentence)}</p>' for sentence in meaning(found))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main><h1>{escape(title)}</h1>\n"
        f"<p>{_count(runs, 'run')}, {'more' if found.higher else 'less'} is better{target}.</p>\n"
        f"{_table(table_cells(found))}\n{said}\n<h2>Figures</h2>\n{figures}"
        f"{_settings(found)}" + (f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "") + "</main></body></html>\n"
    )


def inlined(svg: bytes, prefix: str, words: str) -> str:
    """An SVG as an element of a page: its names made its own, so that several stand in one page; told in words."""
    text = re.sub(r"<metadata>.*?</metadata>", "", svg.decode()[svg.index(b"<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _figure(name: str, svg: bytes, words: str) -> str:
    return (
        f'<figure><div class="wide">{inlined(svg, name, words)}</div>'
        f"<figcaption>{escape(_capital(words))}</figcaption></figure>\n"
    )


def _table(cells: Sequence[Sequence[str]], kind: str = "results") -> str:
    header, *body = cells
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in body)
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>"
    return f'<div class="wide"><table class="{kind}">{inside}</table></div>'


def _settings(found: Findings) -> str:
    """What tells the curves apart as a table, and the rest folded away.

    A setting that only some have, as the arguments of a class, tells nothing more than the class where they agree.
    """
    settings = [{short_key(key): text for key, text in curve.runs[0].settings.items()} for curve in found.curves]
    values: dict[str, set[str]] = {}
    for key, text in (item for some in settings for item in some.items()):
        values.setdefault(key, set()).add(text)
    differ = [key for key, texts in values.items() if len(texts) > 1]
    alike = [[key, *texts] for key, texts in values.items() if len(texts) == 1]
    pairs = zip(found.curves, settings, strict=True)
    lines = [[curve.label, *(some.get(key, "–") for key in differ)] for curve, some in pairs]
    parts = []
    if differ:
        parts.append(f"<h2>Settings that differ</h2>{_table([['run', *differ], *lines], 'settings')}\n")
    if alike:
        table = _table([["setting", "value"], *alike], "settings")
        summary = "Settings that are the same in all runs that have them"
        parts.append(f"<details><summary>{summary}</summary>{table}</details>\n")
    return "".join(parts)
