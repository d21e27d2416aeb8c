"""The Hugging Face hub, asked at most once and never for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_partitions.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

PROBE_SECONDS = 3.0


def probe_hub(ask: Callable[[], object]) -> str | None:
    """Asks the hub for something small, to know whether it answers.

    The thread bounds what no timeout of a socket does: name servers that do not answer, and redirects.

    Args:
        ask: a request to the hub that raises where it fails.

    Returns:
        Why it failed, within 3 seconds; None where it did not.
    """
    from datasets import config
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or config.HF_HUB_OFFLINE:
        return "offline mode is on"
    failures: list[str | None] = []

    def run() -> None:
        try:
            ask()
            failures.append(None)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {first_line(error)}")

    thread = threading.Thread(target=run, name="hub-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return failures[0] if failures else f"no answer within {PROBE_SECONDS:g} s"


def load_from_hub(path: str, config: str | None, split: str, key: str = "data.path") -> Dataset:
    """Loads a split from the hub, or where that does not answer what `datasets` prepared on an earlier day.

    Args:
        path: a hub id, `owner/name`.
        config: which of the data set's configurations, or None for its only one.
        split: the split's name.
        key: by which key the user named the path, for errors.

    Returns:
        The split, all columns.

    Raises:
        DataError: if it cannot be had (the hub is given 3 seconds).
    """
    import datasets
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=datasets.config.HF_ENDPOINT)
    failure = probe_hub(lambda: hub.dataset_info(path, timeout=PROBE_SECONDS))
    try:
        with _offline(failure is not None):
            found = datasets.load_dataset(path, config, split=split)
    except Exception as error:  # The hub, the network, the disk and every file format raise their own.
        if failure and isinstance(error, ConnectionError):
            raise DataError(
                f"{key} {path!r} is no folder here, not in the cache, and cannot be had from the hub ({failure}):"
                f" give downloaded files with --{key} FOLDER"
            ) from error
        raise DataError(
            f"{key} {path!r} cannot be loaded ({type(error).__name__}: {first_line(error)}):"
            f" give another id, or downloaded files with --{key} FOLDER"
        ) from error
    return found


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Has `datasets` look into its own cache at once; left alone it would first retry for 23 seconds."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of a long story."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
