"""The report's page as a reader sees it, in a headless Chromium: on a desk, on a phone, on paper."""

from pathlib import Path

import pytest

from launch.__main__ import main
from tests.launch.test_report import write_run

pytest.importorskip("playwright", reason="no playwright here: pip install -c constraints.txt -e '.[test]'")

from playwright.sync_api import Browser

from tests.launch.chromium import PATIENCE_SECONDS, browser

__all__ = ["browser"]

NARROW = {"width": 390, "height": 844}
BOXES = "elements => elements.map(element => element.getBoundingClientRect().width)"


def test_the_page_fits_desk_phone_and_paper(browser: Browser, tmp_path: Path) -> None:
    """What is wider than a phone scrolls by itself, with the names of the runs in place; paper is wide enough."""
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", "LoRA", [0.1, 0.5, 0.9 + 0.01 * seed], seed=seed)
        write_run(tmp_path / f"b{seed}", "A method of a long name", [0.1, 0.4, 0.6 + 0.01 * seed], seed=seed)
    assert main(["report", str(tmp_path), "--target", "accuracy=0.8", "--html"]) == 0
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * PATIENCE_SECONDS)
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.goto(f"file://{tmp_path / 'report.html'}")
    assert asked == [f"file://{tmp_path / 'report.html'}"]
    assert faults == []
    assert page.locator("svg").count() == 2
    assert all(1000 < width < 1280 for width in page.locator("svg").evaluate_all(BOXES))

    page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    assert page.evaluate("document.scrollingElement.scrollWidth") == NARROW["width"]
    table = page.locator(".wide").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    table.evaluate("box => { box.scrollLeft = 200 }")
    name, final = page.locator("tbody tr").first.locator("td").nth(0), page.locator("tbody td").nth(2)
    assert name.evaluate("cell => cell.getBoundingClientRect().left") >= 0
    assert final.evaluate("cell => cell.getBoundingClientRect().left") < name.evaluate(
        "cell => cell.getBoundingClientRect().right"
    )
    assert all(width >= 640 for width in page.locator("svg").evaluate_all(BOXES))

    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 960})  # A4 within its margins, at 96 dots an inch
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 680
    assert all(width <= 680 for width in page.locator("svg").evaluate_all(BOXES))
    page.close()
