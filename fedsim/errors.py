"""The errors that end a run with one line, where they were, and how a misspelt name is answered."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class ConfigurationError(ValueError):
    """Bad configuration, data or checkpoint: the message is one line saying what was given, expected, and to do."""


class TrainingError(RuntimeError):
    """A run that cannot go on: the message is one line naming client, round and what to do."""


class UnsendableError(TrainingError):
    """Values that the dtype in which they are to travel cannot hold.

    Args:
        what: the message that they were for.
        fault: how many, which, and what to do.
    """

    def __init__(self, what: str, fault: str) -> None:
        super().__init__(f"{what}: {fault}")
        self.fault = fault


class RunStopped(RuntimeError):
    """A run that was asked to stop and left; it goes on from its last checkpoint.

    Args:
        line: what the user is told.
        by: the name of the signal.
    """

    def __init__(self, line: str, by: str) -> None:
        super().__init__(line, by)
        self.line = line
        self.by = by

    def __str__(self) -> str:
        return self.line


class WorkerLost(RuntimeError):
    """A collective failed because another worker stopped; that one says why."""


@contextmanager
def named(where: str) -> Iterator[None]:
    """Adds to whatever goes wrong inside, or in a function that this decorates, where that was.

    Args:
        where: worker, round, stage or client; it becomes a note of the exception (PEP 678).
    """
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise


def unknown_name(kind: str, given: str, known: Iterable[str]) -> ConfigurationError:
    """Builds the error for a name that nothing goes by.

    Args:
        kind: what was looked up, in the singular ("method").
        given: the name that was asked for.
        known: every name there is.

    Returns:
        The error, naming near matches where there are any and every known name where there are none.
    """
    names = sorted(known)
    lowered = {name.lower(): name for name in names}
    near = [lowered[match] for match in get_close_matches(given.lower(), lowered, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return ConfigurationError(f"unknown {kind} {given!r}; {hint}")
