"""The report as one page: it holds everything, and fetches nothing."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.reports.page import inlined
from tests.launch.test_report import write_run
from tests.launch.test_report_grid import KEYS, write_cell

VOID = {"meta", "use", "path", "rect", "br"}


class Outline(HTMLParser):
    """What a page holds: its text, how often each element, every attribute, and whether elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.count, self.attributes, self.open = "", Counter[str](), list[tuple[str, str]](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with all four figures, seeds, a class that some lack, and a name that is no HTML."""
    folder = tmp_path_factory.mktemp("page")
    for index, (rank, density, final) in enumerate([(1, 0.25, 0.6), (1, 1.0, 0.7), (4, 0.25, 0.8), (4, 1.0, 0.9)]):
        for seed in (0, 1):
            write_cell(folder / f"{index}-{seed}", rank, density, final + 0.01 * seed, seed, "rounds: 3\n")
    config = "method:\n  class_path: methods.Own\n  init_args:\n    own_key: 7\nrounds: 3\n"
    write_run(folder / "own", "<b>Own</b> & co", [0.1, 0.5], config=config)
    write_run(folder / "killed", "Killed", [0.1], finished=False)
    assert main(["report", str(folder), "--target", "accuracy=0.65", "--heat_map", *KEYS, "--html"]) == 0
    return (folder / "report.html").read_text()


def test_the_page_holds_tables_figures_settings_and_notes(text: str) -> None:
    found = Outline(text)
    assert found.open == []
    assert found.count["svg"] == found.count["figure"] == 4
    assert found.count["table"] == 3
    for words in (
        "Accuracy of 5 configurations",
        "9 runs, more is better; target 65 %.",
        "<b>Own</b> & co",
        "Few seeds prove little (here 2)",
        "Bytes to accuracy 65 %",
        "left out, not finished",
        "not in the heat map",
    ):
        assert words in found.text
    assert ("aria-label", "accuracy against uploaded bytes") in found.attributes


def test_settings_are_those_that_differ(text: str) -> None:
    """A key that only the other class has, and with one value, is told by the class."""
    differ, alike = (re.findall(r"<td>(.*?)</td>|<th scope=\"col\">(.*?)</th>", part) for part in _settings(text))
    assert [head for _, head in differ if head] == ["run", "method", *KEYS]
    assert [cell for cell, _ in alike if cell] == ["rounds", "3", "method.own_key", "7"]


def _settings(text: str) -> tuple[str, str]:
    differ, alike = text.split("Settings that differ")[1].split("<details>")
    return differ, alike.split("</details>")[0]


def test_nothing_comes_from_elsewhere_and_no_two_names_are_equal(text: str) -> None:
    found = Outline(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.count)
    addresses = [value for name, value in found.attributes if name in ("href", "src", "xlink:href", "action")]
    assert addresses
    inside = [address for address in addresses if not address.startswith("data:image/png;base64,")]  # a colour bar's
    assert all(address.startswith("#") for address in inside)
    names = Counter(value for name, value in found.attributes if name == "id")
    assert [name for name, count in names.items() if count > 1] == []
    wanted = {address[1:] for address in inside} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert wanted <= set(names)
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\"<\s]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_an_inlined_drawing_keeps_its_references() -> None:
    head = b'<?xml version="1.0"?>\n<!DOCTYPE svg>\n'
    svg = b'<svg width="1"><metadata>\nx</metadata><g id="a" clip-path="url(#a)"/></svg>'
    assert inlined(head + svg, "one", 'a "b"') == (
        '<svg role="img" aria-label="a &quot;b&quot;" width="1"><g id="one-a" clip-path="url(#one-a)"/></svg>'
    )


def test_without_seeds_and_differences_the_page_is_short(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "LoRA", [0.1, 0.5])
    assert main(["report", str(tmp_path), "--html"]) == 0
    found = Outline((tmp_path / "report.html").read_text())
    assert (found.count["svg"], found.count["table"], found.count["details"]) == (1, 1, 0)
    assert "Accuracy of 1 configuration1 run, more is better." in found.text.replace("\n", "")
