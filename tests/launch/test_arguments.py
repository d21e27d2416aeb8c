"""Options of a command, and keys of its runs behind `--`."""

from typing import Any

import pytest

from launch import search, submit, sweep
from launch.arguments import OF_A_RUN_TOO, split_keys
from launch.configuration import build_parser


def test_what_stands_behind_the_first_dashes_is_for_the_runs() -> None:
    assert split_keys(["--jobs", "2", "--", "--rounds", "3", "--"]) == (["--jobs", "2"], ["--rounds", "3", "--"])
    assert split_keys(["--jobs", "2"]) == (["--jobs", "2"], [])


@pytest.mark.parametrize("command", [search, submit, sweep])
def test_an_option_with_the_name_of_a_key_is_known_as_both(command: Any) -> None:
    """Any other among the keys is a slip."""
    options = {f"--{name}" for name in vars(command.read_options(["--seeds", "0"] if command is sweep else []))}
    keys = {f"--{key.partition('.')[0]}" for key in build_parser().get_defaults().keys()}  # noqa: SIM118
    assert options & keys <= OF_A_RUN_TOO
