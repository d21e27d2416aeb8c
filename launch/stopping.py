"""Signals that ask a run to stop: it finishes its round, saves and leaves; in time, or without the round.

SLURM sends SIGTERM before it preempts a job, and what `sbatch --signal` names before the time limit; torchrun passes
SIGTERM on to its workers; Ctrl-C is SIGINT. A run that is killed outright loses no more than the rounds behind its last
checkpoint, so leaving late is no different from being killed, but for the marker and the exit status.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PREEMPTED, DONE = "PREEMPTED", "DONE"
"""What a run leaves in its directory: it can go on, or it is finished. Batch scripts look for them."""

STOPPED, INTERRUPTED = 85, 130
"""Exit statuses of a run that was asked to stop, and of one that Ctrl-C stopped."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def status_of(by: str) -> int:
    """Returns the exit status of a run that a signal stopped."""
    return INTERRUPTED if by == signal.SIGINT.name else STOPPED


class StopRequest:
    """Listens for signals while the context lasts, in a thread: the main one may be inside a collective for minutes.

    Args:
        within_seconds: how long the running round may go on, and saving takes; then the process leaves as it is.
        speaks: whether this process tells the user.

    Attributes:
        by: the name of the first signal, such as SIGTERM; nothing where none came.
        folder: the run's directory, once it is known, on the server worker: where the marker goes.
    """

    def __init__(self, within_seconds: float, speaks: bool) -> None:
        self.by = ""
        self.folder: Path | None = None
        self._within = within_seconds
        self._speaks = speaks
        self._since = 0.0
        self._timer: threading.Timer | None = None
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._woken_before = -1
        self._ears: tuple[int, int] | None = None

    def asked(self) -> bool:
        """Whether a signal came."""
        return bool(self.by)

    def long_ago(self) -> bool:
        """Whether a signal came that was not the launcher's, who ends all workers as soon as one has failed."""
        return self.asked() and time.monotonic() - self._since > self._within / 2

    def leave_marker(self) -> None:
        """Says in the run's directory that it can go on."""
        if self.folder is not None:
            (self.folder / PREEMPTED).write_text(f"{self.by}\n", encoding="utf-8")

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may listen
            self._ears = os.pipe()
            os.set_blocking(self._ears[1], False)
            self._woken_before = signal.set_wakeup_fd(self._ears[1], warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            threading.Thread(target=self._listen, args=(self._ears[0],), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ears is not None:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._woken_before)
            os.close(self._ears[1])  # at which the thread ends
        if self._timer is not None:
            self._timer.cancel()

    def _listen(self, ear: int) -> None:
        """Reads the numbers that the interpreter writes as signals come, whatever the main thread is doing."""
        with open(ear, "rb", buffering=0) as heard:
            while number := heard.read(1):
                self._heard(signal.Signals(number[0]))

    def _heard(self, number: signal.Signals) -> None:
        if number not in SIGNALS:
            return
        if self.by:
            if number == signal.SIGINT:  # asked again by hand: every file is as after a kill
                os._exit(INTERRUPTED)
            return
        self.by, self._since = number.name, time.monotonic()
        self._timer = threading.Timer(self._within, self._leave)
        self._timer.daemon = True
        self._timer.start()
        self._say(f"{self.by}: stopping behind the running round, within {self._within:g} s; Ctrl-C stops at once")

    def _leave(self) -> None:
        """Leaves from wherever the process is."""
        self.leave_marker()
        self._say(f"{self.by}: the round was not done in {self._within:g} s and is dropped; --resume auto goes on")
        os._exit(status_of(self.by))

    def _say(self, line: str) -> None:
        if self._speaks:  # past Python's buffers, which the main thread may be writing to
            os.write(2, f"fedsim: {line}\n".encode())
