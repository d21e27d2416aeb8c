"""The Hugging Face hub, asked at most once and never for long."""

from __future__ import annotations

import threading
from collections.abc import Callable

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


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of a long story."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
