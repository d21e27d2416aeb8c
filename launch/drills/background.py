"""A program that runs beside others, such as a daemon or a server, and ends with what needs it."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS = 10
"""For which a program that was asked to end may still run."""


@contextmanager
def background(
    command: Sequence[str], said: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Keeps a program running, out of the reach of Ctrl-C, while the context lasts.

    Args:
        command: the program and its arguments.
        said: the file that what it prints is added to.
        variables: its environment; None for that of this process.
    """
    with said.open("ab") as file:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
