"""The drill of disks and clocks: what it looks at is seen; docs/reliability.md has what it showed."""

import time
from pathlib import Path

import pytest

from launch.drills import alone, disk
from launch.drills.alone import Ended


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One part of each kind, none of which runs anything."""
    monkeypatch.setattr(disk, "_must", lambda run, what: None)
    monkeypatch.setattr(disk, "parts", lambda: {"clock": lambda whole, folder: []})
    monkeypatch.setattr(disk, "disk_parts", lambda: {"full": lambda whole, folder: ["DIFFERS"]})


@pytest.mark.usefixtures("parts")
def test_without_root_the_other_parts_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk.os, "geteuid", lambda: 1000)
    assert disk.main([]) == 2
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["clock", "as", "promised", "(0", "s)"]
    assert second == "full and read-only disks were left out: to mount them takes root"
    assert last == "0 promises broken"


@pytest.mark.usefixtures("parts")
def test_a_broken_promise_is_a_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(disk, "may_mount", lambda folder: True)
    assert disk.main([]) == 1
    assert "BROKEN: DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ended", "promised"),
    [
        (Ended(1, ["fedsim: x: No space left on device; make room"]), True),
        (Ended(2, ["fedsim: x: No space left on device; make room"]), False),
        (Ended(1, ["Traceback", "fedsim: x: No space left on device"]), False),
        (Ended(1, ["fedsim: out of luck"]), False),
        (Ended(None, []), False),
    ],
)
def test_one_line_is_one_line(ended: Ended, promised: bool) -> None:
    assert (disk._not_refused(ended, 1, "No space left on device") == []) is promised


def test_what_happens_in_a_stage_is_there() -> None:
    stages = alone._stages()
    assert set(disk.FULL) == set(stages)
    assert all(callable(getattr(owner, name)) for owner, name in stages.values())


def test_a_clock_that_jumps_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.reporting import RunFiles

    for owner, name in ((time, "time"), (time, "time_ns"), (RunFiles, "round_done")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(RunFiles, "round_done", lambda self, round: None)
    before = time.time()
    alone.jump({0: -3600.0, 2: 86400.0})
    assert time.time() - before == pytest.approx(-3600, abs=60)
    RunFiles.round_done(None, 1)  # type: ignore[arg-type, call-arg]
    assert time.time() - before == pytest.approx(-3600, abs=60)
    RunFiles.round_done(None, 2)  # type: ignore[arg-type, call-arg]
    assert time.time_ns() / 1e9 - before == pytest.approx(86400, abs=60)


def test_a_full_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not disk.may_mount(tmp_path):
        pytest.skip("to mount takes root")
    with disk.mounted(tmp_path / "disk", 100_000) as place:
        alone._fill(place / "ballast")
        with pytest.raises(OSError, match="No space left"):
            (place / "more").write_bytes(bytes(5000))
    assert not (tmp_path / "disk").exists()
