"""What there is to choose from is listed without importing it."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS, main
from launch.listing import KINDS
from launch.registry import choices

LISTED = {
    "methods": {"FLASC", "LoRA"},
    "datasets": {"Digits"},
    "partitioners": {"IID", "Dirichlet", "Natural"},
    "presets": {"digits"},
    "sweeps": {"paper/table1", "paper/fig3_cifar10"},
}

LIGHT = """
import sys
from launch.__main__ import main
for argv in (["--help"], ["list"], ["list", "presets"], ["report", "--help"], ["export", "--help"], ["rnu"]):
    try:
        main(argv)
    except SystemExit:
        pass
heavy = {name.partition(".")[0] for name in sys.modules}
print("heavy:", *sorted(heavy & {"torch", "transformers", "lightning", "peft", "datasets", "sklearn", "matplotlib"}))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_a_line_each(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert set(names) >= LISTED[kind]
    assert names == sorted(names, key=str.lower)
    assert len(names) == len(set(names)) == len(choices(kind))


def test_without_a_kind_all_are_listed_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip(":") for line in lines if not line.startswith("  ")] == list(KINDS)
    words = {line.split()[0] for line in lines}
    assert all(names <= words for names in LISTED.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_says_what_it_is_and_where_it_comes_from(kind: str) -> None:
    for choice in choices(kind):
        assert choice.phrase, choice
        assert choice.source, choice
        assert "\n" not in choice.phrase + choice.source
        assert not choice.phrase.endswith(".")


def test_the_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["-h"], ["--help"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert [command for command in COMMANDS if f"  {command} " not in out] == []


def test_listing_and_help_import_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert done.stderr == "fedsim: unknown command 'rnu'; did you mean run?\n"
