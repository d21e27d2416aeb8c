"""A peer's process, as the benchmark sees it: it does a round when told, and waits on a pipe while others are timed."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import launch
from launch.benchmarks.peers.environments import PEERS, python
from launch.benchmarks.works import Round, Work

SECONDS_TO_LEAVE = 20
"""How long a peer may take to end by itself: Ray stops several processes of its own."""
LINES_SAID = 20
"""How many of its last lines are shown where it stopped."""


@contextmanager
def peer(who: str, work: Work, threads: int) -> Iterator[Round]:
    """Starts a peer's process, and ends it on leaving.

    Args:
        who: one of `PEERS`, installed.
        work: the size of the work.
        threads: CPU threads of it, or of each of its workers.

    Yields:
        The whole round: it starts when the process is told its number and ends when its mean update is here.

    Raises:
        RuntimeError: by the round, where the process stopped.
    """
    peer = PEERS[who]
    ours, theirs = Pipe()
    with TemporaryDirectory(prefix="peer") as folder, Path(folder, "said.txt").open("w") as said:
        with theirs:  # closed here, so that the pipe breaks when the process ends
            code = str(Path(launch.__file__).parents[1])  # the code that measures, wherever it was started
            path = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
            process = subprocess.Popen(
                [python(who), "-m", "launch.benchmarks.peers.serve", peer.module, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": path} | peer.variables,
                cwd=folder,  # what it leaves behind goes with it
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is not for it; who started it closes the pipe
            )
        try:
            with suppress(ConnectionError):  # of one that has stopped already: the first round says why
                ours.send((work, threads))
            yield partial(_round, who, ours, Path(said.name))
        finally:
            ours.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_LEAVE)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it and whatever it started
            process.wait()


def _round(who: str, pipe: Connection, said: Path, round: int) -> Tensor:
    try:
        pipe.send(round)
        return torch.from_numpy(pipe.recv())
    except (EOFError, ConnectionError) as error:
        last = said.read_text(errors="replace").splitlines()[-LINES_SAID:]
        raise RuntimeError("\n".join([f"{who} stopped; it said:", *last])) from error
