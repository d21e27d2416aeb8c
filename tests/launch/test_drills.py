"""Drills draw what they promise, and end what they start; docs/reliability.md has what they showed."""

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from launch.drills import background
from launch.drills.kill import CASES, FEWER, MOMENTS, draw
from launch.drills.victim import STAGES


def test_every_stage_and_every_case_is_drawn() -> None:
    drawn = draw(50, 0)
    assert set(STAGES) == set(MOMENTS)
    assert min(Counter(kill.stage for kill in drawn).values()) >= 5
    assert min(Counter(kill.case for kill in drawn).values()) >= 5
    assert {kill.case for kill in drawn} == set(CASES)
    assert {kill.rank for kill in drawn} == {0, 1}
    assert all(kill.rank == 0 for kill in drawn if kill.stage == "save")
    assert all(1 <= kill.count <= FEWER.get((kill.case, kill.stage), MOMENTS[kill.stage]) for kill in drawn)
    assert draw(50, 0) == drawn != draw(50, 1)


def test_what_a_worker_does_in_a_stage_is_there() -> None:
    assert all(callable(getattr(owner, name)) for owner, name in STAGES.values())


@pytest.mark.parametrize("deaf", [False, True])
def test_a_program_in_the_background_ends_with_its_context(
    deaf: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SECONDS", 0.2)
    said = tmp_path / "said"
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    program = f"import signal, time; {ignore}print('here', flush=True); time.sleep(60)"
    with background.background([sys.executable, "-c", program], said) as process:
        while said.read_text() != "here\n":
            assert process.poll() is None
            time.sleep(0.01)
    assert process.returncode == (-9 if deaf else -15)
