"""Errors of the operating system, said in one line: which file, what happened, what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds a file's name to the errors of what is done to it: those of a write and of a flush come without one.

    Args:
        path: the file.

    Raises:
        OSError: as it came, and with the name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def what_to_do(error: OSError, goes_on: bool) -> str:
    """Says in one line what is wrong with a file or a disk, and what helps.

    Args:
        error: from the operating system.
        goes_on: whether this was a run, which can be gone on with.
    """
    where = f"{error.filename}: " if error.filename is not None else ""
    again = ", then go on with --resume auto" if goes_on else ""
    if error.errno in _FULL:
        advice = f"make room on that disk{again}"
    elif error.errno in _CLOSED:
        advice = f"give a place that may be read and written{again}"
    else:
        advice = f"correct that{again}; --debug shows where it happened"
    return f"{where}{error.strerror or str(error) or type(error).__name__}; {advice}"
