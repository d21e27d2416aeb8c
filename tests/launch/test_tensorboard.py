"""A run's curves as a user sees them: TensorBoard's Time Series page in a headless Chromium."""

import csv
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from fedsim import simulation
from fedsim.checkpoint import Checkpoint
from launch.__main__ import main
from launch.drills.background import background

pytest.importorskip("playwright", reason="no playwright here: pip install -c constraints.txt -e '.[test]'")

from playwright.sync_api import Browser, Locator, Page

from tests.launch.chromium import PATIENCE_SECONDS, browser

__all__ = ["browser"]

CURVES = {
    "eval/accuracy": ("flasc", "round", "accuracy"),
    "eval_by_upload_bytes/accuracy": ("flasc/by_upload_bytes", "upload_bytes", "accuracy"),
    "eval_full/accuracy": ("flasc", "round", "full/accuracy"),
    "eval_full_by_upload_bytes/accuracy": ("flasc/by_upload_bytes", "upload_bytes", "full/accuracy"),
}
"""Every curve of accuracy by tag: its run in TensorBoard, and the columns of metrics.csv that are its x and its y."""
PAGE = "?smoothing=0&tagFilter=^eval.*/accuracy$#timeseries"
WINDOW = (1400, 1000)

T = TypeVar("T")


def settled(read: Callable[[], T], done: Callable[[T], bool]) -> T:
    """Reads until it is done or patience ends, and returns what was read last."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not done(found := read()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that died in its fourth round, when its second was saved and its third reported, and went on to its
    fifth; TensorBoard calls it flasc."""
    folder = tmp_path_factory.mktemp("tensorboard") / "runs" / "flasc"
    short = ("--rounds", "5", "--cohort_size", "3", "--evaluate_every_rounds", "1", "--checkpoint_every_rounds", "2")
    save = simulation.save_checkpoint

    def die(into: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 4:
            raise KeyboardInterrupt
        save(into, checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "save_checkpoint", die)
        assert main(["run", *short, "--run_dir", str(folder)]) == 130
    assert [row["round"] for row in rows(folder)] == ["0", "1", "2", "3"]
    assert main(["run", *short, "--run_dir", str(folder), "--resume", "auto"]) == 0
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """Where a TensorBoard serves the run's parent folder; it serves when all is read, from a port that was free."""
    log = run.parent.parent / "tensorboard.log"
    command = (sys.executable, "-m", "tensorboard.main", "--logdir", str(run.parent))
    alone = ("--host", "127.0.0.1", "--port", "0")
    blocking = ("--load_fast", "false", "--reload_task", "blocking", "--reload_interval", "0")
    with background([*command, *alone, *blocking], log) as process:
        read = re.compile(r"http://127\.0\.0\.1:\d+/").search
        found = settled(lambda: read(log.read_text()), lambda it: it is not None or process.poll() is not None)
        assert found is not None, log.read_text()
        yield found[0]


@pytest.fixture(scope="module")
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page with every curve in full, without smoothing, once its cards stand and the numbers below them."""
    with browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]}) as page:
        page.set_default_timeout(1000 * PATIENCE_SECONDS)
        page.goto(address + PAGE)
        settled(page.locator("scalar-card tb-data-table-content-row").count, lambda rows: rows >= len(CURVES))
        page.get_by_label("Ignore outliers in chart scaling").uncheck()
        yield page


def card(page: Page, tag: str) -> Locator:
    found = page.locator("scalar-card", has=page.locator(f'tb-truncated-path[title="{tag}"]'))
    assert found.count() == 1
    return found


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def x_axis(card: Locator) -> list[float]:
    """What a chart's axis says: 100k is 100,000. The axis of a chart without data says 0 to 1."""
    found = []
    for tick in card.locator(".x-axis text").all_text_contents():
        match = re.fullmatch(r"([-\d.]+)([kM]?)", tick.strip().replace("−", "-"))
        assert match is not None, tick
        found.append(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6}[match[2]])
    return found


def picture(png: bytes) -> np.ndarray:
    """Its pixels, (height, width, 3)."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def drawn(chart: Locator, colour: list[int]) -> float:
    """The share of a chart's width in which its run's colour is seen; grid, axes and cursor are grey."""
    near = np.abs(picture(chart.screenshot()) - colour).max(axis=2) <= 40
    return float(near.any(axis=0).mean())


def test_the_cards_have_the_tags_of_the_run(page: Page) -> None:
    shown = page.locator("scalar-card tb-truncated-path").all_text_contents()
    assert sorted(tag.strip() for tag in shown) == sorted(CURVES)


@pytest.mark.parametrize("tag", CURVES)
def test_a_curve_ends_where_the_run_ended(tag: str, page: Page, run: Path) -> None:
    """In the table below the chart, and on the chart's axis: in rounds, or in bytes and not in megabytes."""
    name, x, y = CURVES[tag]
    found, last = card(page, tag), rows(run)[-1]
    cells = found.locator("tb-data-table-content-row tb-data-table-content-cell").all_inner_texts()
    _, shown_run, value, step, *_ = (cell.strip() for cell in cells)
    assert shown_run == name
    assert int(step.replace(",", "")) == int(last[x]) > 0
    assert float(value) == pytest.approx(float(last[y]), abs=1e-4)
    ticks = settled(lambda: x_axis(found), lambda it: bool(it) and max(it) >= 0.8 * int(last[x]))
    assert min(ticks) <= 0
    assert 0.8 * int(last[x]) <= max(ticks) <= 2 * int(last[x])


@pytest.mark.parametrize("tag", CURVES)
def test_a_resumed_curve_has_every_point_once(tag: str, page: Page, run: Path, address: str) -> None:
    """As the page gets them, from the run's first start and from its second."""
    name, x, y = CURVES[tag]
    answer = page.request.get(f"{address}data/plugin/scalars/scalars", params={"run": name, "tag": tag})
    points = [(step, value) for _, step, value in answer.json()]
    assert len(points) == 6
    assert points == [(int(row[x]), pytest.approx(float(row[y]), abs=1e-6)) for row in rows(run)]


@pytest.mark.parametrize("tag", CURVES)
def test_a_curve_is_drawn_from_its_first_step_to_its_last(tag: str, page: Page) -> None:
    """The axis goes on beyond both ends, to the next tick."""
    found = card(page, tag)
    background = found.locator(".row-circle span").evaluate("it => getComputedStyle(it).backgroundColor")
    colour = [int(part) for part in re.findall(r"\d+", background)]
    chart = found.locator("line-chart .series-view")
    assert settled(lambda: drawn(chart, colour), lambda share: share > 0.6) > 0.6


def test_a_screenshot_shows_the_page(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "timeseries.png"
    page.screenshot(path=path)
    pixels = picture(path.read_bytes())
    assert pixels.shape == (WINDOW[1], WINDOW[0], 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
