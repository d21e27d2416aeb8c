"""YAML is read in bounds: of characters, values and levels."""

from pathlib import Path

import pytest

from launch.drills.targets import BOMB
from launch.yaml_files import MOST_CHARACTERS, MOST_VALUES, NoSettings, parse_yaml, read_yaml


def test_settings_come_back(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("rounds: 3\nclient: &c {lr: 0.1}\nagain: *c\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"rounds": 3, "client": {"lr": 0.1}, "again": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, f"more than {MOST_VALUES} values or 32 levels"),
        ("a: &a [*a]", f"more than {MOST_VALUES} values or 32 levels"),
        ("a: " + "[" * 40 + "]" * 40, "values or 32 levels"),
        ("a: " + "[" * 5_000 + "]" * 5_000, "more than 32 levels"),
        (f"a: [{'0,' * (MOST_VALUES + 1)}]", f"more than {MOST_VALUES} values"),
        ("a" * (MOST_CHARACTERS + 1), f"more than {MOST_CHARACTERS} characters"),
        ("a: 2001-99-99", "a value that cannot be read (month must be in 1..12"),
    ],
    ids=["aliases", "itself", "levels", "many levels", "values", "characters", "date"],
)
def test_what_settings_cannot_have_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(NoSettings) as caught:
        parse_yaml(text)
    assert says in str(caught.value)
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(NoSettings):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(("text", "says"), [("", "nothing"), ("- 1", "a list"), ("3", "a single value")])
def test_what_is_no_mapping_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(NoSettings, match=f"holds {says}; expected keys with values"):
        read_yaml(tmp_path / "a.yaml")
