"""docs/sweeps.md: its files are sweeps, its commands are ones that fedsim takes."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from launch.__main__ import main
from launch.configuration import read_settings
from launch.report import read_arguments
from launch.search import read_options
from launch.sweeps.definition import sweep_of

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text()
FILES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


def test_there_are_some() -> None:
    assert len(FILES) == 3
    assert {command[1] for command in COMMANDS} == {"sweep", "search", "report", "list"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1] == "sweep" and "--optuna" not in c], ids=" ".join)
def test_sweeps_can_be_run(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(FILES[0])
    monkeypatch.chdir(tmp_path)
    for folder in (word for word in command if "FOLDER" in word):
        (tmp_path / folder).mkdir()
    at = command.index("--") if "--" in command else len(command)
    assert main(["sweep", *command[2:at], "--dry_run", *command[at:]]) == 0
    said = capsys.readouterr().out
    assert ("runs/mine/quarter,lora_rank=4-s0" in said) == ("mine.yaml" in command)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1] == "search"], ids=" ".join)
def test_searches_can_be_run(command: list[str]) -> None:
    at = command.index("--") if "--" in command else len(command)
    read_options(command[2:at])
    read_settings(command[at + 1 :])


def test_space_and_search_are_ones() -> None:
    sweep = sweep_of(yaml.safe_load(FILES[1]))
    assert {*sweep.space} == {"method.lora_rank", "client.lr", "client.local_epochs"}
    search = sweep_of(yaml.safe_load(FILES[2])).search
    assert search is not None
    assert {*search.grids()} == {"rank_grid", "flasc_grid"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1] == "report"], ids=" ".join)
def test_reports_can_be_made(command: list[str]) -> None:
    read_arguments(command[2:])
