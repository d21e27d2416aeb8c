"""argparse for the commands with a handful of options: no abbreviations, mistakes answered in one line."""

import argparse
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from fedsim.errors import ConfigurationError, unknown_name

OF_A_RUN_TOO = frozenset({"--config", "--debug", "--partition"})
"""Options of a command that are keys of a run, too; SLURM's partition is one."""


class Arguments(argparse.ArgumentParser):
    """A parser that raises instead of leaving.

    Args:
        command: the command's name.
        description: what it does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"fedsim {command}", description=description, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises what argparse found wrong.

        Raises:
            ConfigurationError: always, with near matches for an unknown option.
        """
        found, _, names = message.partition("unrecognized arguments: ")
        if not found and names:
            options = [option for action in self._actions for option in action.option_strings]
            raise unknown_name(f"option of {self.prog}", names.split()[0].partition("=")[0], options)
        raise ConfigurationError(f"{message}; {self.prog} --help shows what it takes")


def split_keys(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command's own options from the keys of its runs, which stand behind `--`."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def refuse_misplaced(options: Namespace, keys: Sequence[str], command: str) -> None:
    """Refuses an option of the command among the keys of its runs.

    Args:
        options: of the command.
        keys: what stands behind `--`.
        command: the command's name.

    Raises:
        ConfigurationError: an option is misplaced.
    """
    own = {f"--{name}" for name in vars(options)} - OF_A_RUN_TOO
    for key in keys:
        name = key.partition("=")[0]
        if name in own:
            raise ConfigurationError(
                f"{name} stands behind --, where the keys of the runs are, and is an option of fedsim {command}; "
                f"give it before: fedsim {command} {name} ... -- ..."
            )
