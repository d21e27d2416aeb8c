"""The fuzzing drill: seconds of what docs/reliability.md reports minutes of, and that it sees what it is to find."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import ConfigurationError
from launch.drills import fuzz
from launch.drills.fuzz import explore, feed, main
from launch.drills.mutations import Random
from launch.drills.targets import TARGETS, Checkpoints, Target

INPUTS = {"codec": 700, "checkpoint": 60, "configuration": 6, "partition": 150}
"""That a target gets here."""


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_or_read_soundly(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoints, "METHODS", Checkpoints.METHODS[:1])
    target = TARGETS[name](tmp_path)
    outcomes: Counter[str] = Counter()
    for number in range(INPUTS[name]):
        outcome, finding = feed(target, 7, number)
        assert finding is None
        outcomes[outcome] += 1
    assert outcomes["refused"] > 0
    assert outcomes["valid"] > 0 or name == "configuration"


class Broken(Target):
    """Breaks the promise in every way, by the number that is drawn."""

    def feed(self, random: Random) -> None:
        kind = int(random.integers(8))
        if kind == 0:
            raise ConfigurationError("refused")
        if kind == 1:
            raise ConfigurationError(" ")
        if kind == 2:
            raise KeyError("a bug")
        if kind == 3:
            while True:
                time.process_time()
        if kind == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 5:
            np.zeros(2**28)
        if kind == 6:
            try:
                np.zeros(2**28)
            except MemoryError as error:
                raise ConfigurationError("no room") from error


class Sound(Target):
    def feed(self, random: Random) -> None:
        if random.integers(2):
            raise ConfigurationError("refused")


def test_every_broken_promise_is_found_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    seen: Counter[str] = Counter()
    said: dict[str, int] = {}
    for finding in explore(Broken, 3, 30.0, seen):
        said.setdefault(finding.what, finding.number)
        if len(said) == 6:
            break
    expected = (
        "refused silently",
        "KeyError: 'a bug'",
        "TooLong",
        "the process ended with -9",
        "MemoryError",
        "memory",
    )
    assert [part for part in expected if not any(what.startswith(part) for what in said)] == [], said
    assert feed(Broken(Path()), 3, next(n for what, n in said.items() if what.startswith("KeyError")))[1] is not None


def test_the_command_says_what_it_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fuzz, "TARGETS", {"sound": Sound})
    assert main(["--minutes", "0.003"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("sound: ")
    assert out[0].endswith("0 findings")
    assert out[1] == "0 findings"
    with pytest.raises(ConfigurationError, match="did you mean sound"):
        main(["--target", "sond"])
