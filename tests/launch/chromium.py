"""A real browser for the tests of what a user sees in one; import it after pytest.importorskip("playwright")."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NO_CHROMIUM = "no Chromium here: apt-get install chromium, or python -m playwright install chromium"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOOPBACK_ONLY = ("--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
PATIENCE_SECONDS = 60
"""How long a page may take on a loaded machine; a few seconds are usual."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Playwright's own Chromium, or the machine's; no other host than this one can be reached from it."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if Path(own).exists() else next(filter(None, map(shutil.which, CHROMIUM)), None)
        if path is None:
            pytest.skip(NO_CHROMIUM)
        with playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", *LOOPBACK_ONLY], timeout=1000 * PATIENCE_SECONDS
        ) as browser:
            yield browser
