"""argparse for the commands with a handful of options: no abbreviations, mistakes answered in one line."""

import argparse
from typing import NoReturn

from fedsim.errors import ConfigurationError, unknown_name


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
