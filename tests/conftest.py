"""What holds for all tests: hypothesis without its clock, and the order for `pytest -n`."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, and no test fails for that.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

TESTS = Path(__file__).resolve().parent
LONGEST_FIRST = (TESTS, TESTS / "launch")
"""Folders with tests of whole runs."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist, the longest files first, so that no process is left with one at the end.

    A file is the unit that is dealt: what its tests share is made once. (--dist loadgroup would deal tests, but is
    silently without groups from pytest 9.2 on: pytest-xdist, issue 1386.)
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (*LONGEST_FIRST, item.path.parent).index(item.path.parent))
