"""Other simulators beside the engine: how they are installed, told rounds, and held to equal work."""

import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from fedsim.errors import ConfigurationError
from launch.__main__ import main
from launch.benchmarks import works
from launch.benchmarks.contestants import CONTESTANTS
from launch.benchmarks.local_work import Arena
from launch.benchmarks.peers import environments, process
from launch.benchmarks.peers.environments import HOW, PEERS, Peer, not_installed
from launch.benchmarks.works import Work

TINY = Work("tiny", works.digits, works.tiny_vit, batch_size=4, clients=3, steps=2)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for the peers' environments."""
    monkeypatch.setattr(environments, "CACHE", tmp_path / "peers")
    return tmp_path / "peers"


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What the fake peer, for which no environment is needed, writes down."""
    path = tmp_path / "notes"
    peer = Peer((), "tests.launch.fake_peer", {"FAKE_PEER_NOTES": str(path)})
    monkeypatch.setitem(PEERS, "fake", peer)
    monkeypatch.setattr(process, "python", lambda who: Path(sys.executable))
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A simulator as small as can be."""
    path = tmp_path / "smallsim-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as files:
        files.writestr("smallsim.py", "VERSION = 1\n")
        files.writestr("smallsim-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: smallsim\nVersion: 1.0\n")
        files.writestr("smallsim-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        files.writestr("smallsim-1.0.dist-info/RECORD", "")
    return path


def test_a_peer_does_the_rounds_that_it_is_told(notes: Path) -> None:
    """In a folder that goes with it, with as many threads as here; it leaves by itself at the end."""
    with Arena(TINY) as arena:
        told, bare = arena.peer("fake"), CONTESTANTS["bare"].make(arena)
        for round in (1, 2, 1):
            assert torch.equal(told(round), bare(round))
        folder, threads = notes.read_text().splitlines()
        assert Path(folder).is_dir()
        assert Path(folder) != Path.cwd()
        assert int(threads) == torch.get_num_threads()
    assert notes.read_text().splitlines()[-1] == "left"
    assert not Path(folder).exists()


def test_what_a_peer_said_last_stands_in_the_error_when_it_stops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho I cannot >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(process, "python", lambda who: script)
    with Arena(TINY) as arena:
        told = arena.peer("pfl")
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^pfl stopped; it said:\nI cannot$"):
                told(1)


def test_an_environment_sees_this_ones_packages_and_has_its_own(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "small", Peer((str(wheel),), "unused"))
    assert not_installed("small") == f"not installed: {HOW}"
    environments.install("small")
    assert not_installed("small") is None
    code = "import smallsim, sys, importlib.metadata as found; print(found.version('torch'), sys.prefix)"
    said = subprocess.check_output([environments.python("small"), "-c", code], text=True)
    assert said.split() == [version("torch"), str(cache / "small")]
    monkeypatch.setitem(PEERS, "small", Peer((str(wheel), "smallsim>=1"), "unused"))
    assert not_installed("small") == f"not installed: {HOW}"


def test_half_an_environment_does_not_pass_for_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(folder: Path, **_: bool) -> None:
        (folder / "lib/python3/site-packages").mkdir(parents=True)

    monkeypatch.setattr(venv, "create", bare)
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 1))
    with pytest.raises(ConfigurationError, match=r"pip could not install pfl==.*; it says why above"):
        environments.install("pfl")
    assert not_installed("pfl") is not None


def test_one_that_cannot_be_installed_does_not_keep_others_from_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def install(who: str) -> None:
        if who == "pfl":
            raise ConfigurationError("no pfl")
        (cache / who).mkdir(parents=True)
        environments._mark(who).write_text(environments._wanted(who))

    monkeypatch.setattr(environments, "install", install)
    for said in ("", "flower: installed\n"):
        assert main(["bench", "--install_peers"]) == 1
        assert capsys.readouterr() == (said, "fedsim: no pfl\n")
        assert not_installed("flower") is None


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("who", PEERS)
def test_a_round_of_one_that_is_not_installed_is_answered_in_a_line(
    who: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--only", f"0/{who}"]) == 2
    assert capsys.readouterr().err == f"fedsim: --only is '0/{who}', but {who} is not installed: {HOW}\n"


@pytest.mark.parametrize("who", ["pfl", pytest.param("flower", marks=pytest.mark.slow)])
def test_peers_do_equal_work(who: str, request: pytest.FixtureRequest) -> None:
    """In a later round, too, whatever they kept of the rounds before."""
    if reason := not_installed(who):
        pytest.skip(f"{who} is {reason}")
    if who == "flower" and "slow" not in request.config.getoption("-m"):
        pytest.skip("it starts Ray; run on request with -m slow")
    with Arena(TINY) as arena:
        told, bare = CONTESTANTS[who].make(arena), CONTESTANTS["bare"].make(arena)
        for round in (1, 2, 1):
            expected = bare(round)
            assert expected.norm() > 0
            assert (told(round) - expected).norm() <= 1e-4 * expected.norm()
