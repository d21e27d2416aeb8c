"""docs/data.md names everything there is to choose, and its commands are ones that fedsim takes."""

import re
import shlex
from pathlib import Path

import pytest

from launch.configuration import read_settings
from launch.registry import choices

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.startswith("fedsim")]


@pytest.mark.parametrize("kind", ["datasets", "partitioners"])
def test_everything_has_its_row(kind: str) -> None:
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    assert [choice.name for choice in choices(kind) if f"`{choice.name}`" not in rows] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_taken(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = command.replace("$DATA", str(tmp_path / "data")).replace("$MODELS", str(tmp_path / "models"))
    _, what, *keys = shlex.split(paths)
    assert what in ("run", "partition")
    read_settings(keys)


def test_every_data_set_that_needs_files_has_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [shlex.split(command)[2:] for command in COMMANDS if command.startswith("fedsim run")]
    shown = {type(read_settings(keys).data).__name__ for keys in runs}
    assert shown == {choice.name for choice in choices("datasets")} - {"Digits"}
