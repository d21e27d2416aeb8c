"""Feeds damaged and random input to all that reads what others wrote, and holds what happens against the promise.

    python -m launch.drills.fuzz --minutes 10

The promise: an error of the project's own kind with something to say, or a valid result; never another exception, a
crash, more than 10 seconds of a processor, or more than a gibibyte of memory. Inputs are drawn by seed and number, so
that one can be repeated:

    python -m launch.drills.fuzz --target codec --seed 0 --number 1234
"""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_longlong
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType

import numpy as np

from fedsim.errors import unknown_name
from fedsim.options import require
from launch.arguments import Arguments
from launch.drills.targets import TARGETS, Target

SECONDS = 10
"""Of a processor that one input may take."""

STUCK_SECONDS = 60
"""By the clock; other work on the machine may be in an input's way, but not for so long."""

MEMORY_BYTES = 2**30
"""That one input may take beyond what the process has before the first."""

MOST_FINDINGS = 30
"""Of a target, after which the next one has its turn."""


class TooLong(BaseException):
    """An input took longer than `SECONDS`; no error that anybody may catch."""


@dataclass(frozen=True)
class Finding:
    """A broken promise.

    Attributes:
        number: of the input.
        what: happened.
    """

    number: int
    what: str


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes, and prints a line per finding and per target; 1 where anything was found."""
    parser = Arguments("drill", "Feeds damaged input to codec, checkpoints, configuration and partitions.")
    parser.add_argument("--minutes", type=float, default=10.0, help="in all (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--target", help=f"one of {', '.join(TARGETS)} (default: all, each its share of the time)")
    parser.add_argument("--number", type=int, help="instead: repeat this one input of --target, with its traceback")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    require("--minutes", arguments.minutes, arguments.minutes > 0, "a number above 0")
    require("--seed", arguments.seed, arguments.seed >= 0, "0 or more")
    require("--number", arguments.number, arguments.number is None or arguments.target, "one together with --target")
    if arguments.target is not None and arguments.target not in TARGETS:
        raise unknown_name("target", arguments.target, TARGETS)
    if arguments.number is not None:
        return repeat(TARGETS[arguments.target], arguments.seed, arguments.number)
    names = [arguments.target] if arguments.target else list(TARGETS)
    findings = [_fuzz(name, arguments.seed, 60 * arguments.minutes / len(names)) for name in names]
    print(f"{sum(findings)} findings")
    return int(any(findings))


def _fuzz(name: str, seed: int, seconds: float) -> int:
    """Fuzzes one target, prints what it finds, and returns how much that is."""
    seen: Counter[str] = Counter()
    found = 0
    for one in explore(TARGETS[name], seed, seconds, seen):
        found += 1
        print(f"{name}: --seed {seed} --number {one.number}: {one.what}", flush=True)
        if found == MOST_FINDINGS:
            break
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(seen.items()))
    print(f"{name}: {sum(seen.values())} inputs ({counts}), {found} findings", flush=True)
    return found


def explore(target: type[Target], seed: int, seconds: float, seen: Counter[str]) -> Iterator[Finding]:
    """Feeds a target in a process of its own, and in another one behind every input that ends it.

    Args:
        target: what to feed.
        seed: of the draws.
        seconds: for how long, from the first input on.
        seen: counts what became of the inputs.

    Yields:
        What broke the promise.
    """
    context = multiprocessing.get_context("fork")
    current = context.Value(c_longlong, -1)
    number, left = 0, seconds
    with tempfile.TemporaryDirectory() as name:
        while left > 0:
            folder = Path(name) / str(number)
            folder.mkdir()
            receiver, sender = context.Pipe(duplex=False)
            current.value = -1
            child = context.Process(target=_live, args=(target, folder, seed, number, left, current, sender))
            child.start()
            sender.close()
            started = time.monotonic()
            ended = False
            try:
                for told in _watched(receiver, current, child.kill):
                    seen.update(told["seen"])
                    ended = ended or told["ended"]
                    if told["finding"] is not None:
                        yield Finding(**told["finding"])
            finally:
                if not ended:
                    child.kill()
                child.join()
            if ended:
                return
            seen["ended the process"] += 1
            number = max(number, current.value)
            yield Finding(number, f"the process ended with {child.exitcode}, or took {STUCK_SECONDS} s and more")
            number, left = number + 1, left - (time.monotonic() - started)


def feed(target: Target, seed: int, number: int) -> tuple[str, Finding | None]:
    """Feeds one input, and says what became of it: valid, refused, or a broken promise."""
    random = np.random.default_rng([seed, number])
    try:
        with _alarm():
            target.feed(random)
    except target.promised as error:
        if any(isinstance(one, MemoryError) for one in _causes(error)):
            return "broke the promise", Finding(number, f"memory ran out, which was then called {str(error)[:200]!r}")
        return ("refused", None) if str(error).strip() else ("broke the promise", Finding(number, "refused silently"))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return "broke the promise", Finding(number, f"{line} ({Path(where.filename).name}, line {where.lineno})")
    return "valid", None


def repeat(kind: type[Target], seed: int, number: int) -> int:
    """Feeds one input again, in this process, and shows the traceback of what it raises."""
    with tempfile.TemporaryDirectory() as name:
        target = kind(Path(name))
        outcome, finding = feed(target, seed, number)
        print(f"{outcome}: {finding.what}" if finding else outcome)
        try:
            target.feed(np.random.default_rng([seed, number]))
        except Exception:
            traceback.print_exc()
        os.chdir("/")
    return int(finding is not None)


def _watched(
    receiver: "Connection[bytes, bytes]", current: "Synchronized[int]", kill: Callable[[], None]
) -> Iterator[dict]:
    """Yields what a child tells until it is gone; kills one that is stuck where no alarm of Python's is heard."""
    before, since = current.value, time.monotonic()
    while True:
        if receiver.poll(1.0):
            try:
                yield json.loads(receiver.recv_bytes())
            except EOFError:
                return
        if current.value != before or before < 0:
            before, since = current.value, time.monotonic()
        elif time.monotonic() - since > STUCK_SECONDS:
            kill()


def _live(
    target: type[Target],
    folder: Path,
    seed: int,
    first: int,
    seconds: float,
    current: "Synchronized[int]",
    sender: "Connection[bytes, bytes]",
) -> None:
    """The child's life: makes the target, takes a limit on memory, and feeds."""
    made = target(folder)
    feed(made, seed, first)  # what is imported and made once is not this input's
    limit = _virtual_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    end, number = time.monotonic() + seconds, first
    seen: Counter[str] = Counter()
    told = time.monotonic()
    while time.monotonic() < end:
        current.value = number
        outcome, finding = feed(made, seed, number)
        seen[outcome] += 1
        number += 1
        if finding is not None or time.monotonic() - told > 1:
            _tell(sender, seen, finding, ended=False)
            told = time.monotonic()
    _tell(sender, seen, None, ended=True)


def _tell(sender: "Connection[bytes, bytes]", seen: Counter[str], finding: Finding | None, ended: bool) -> None:
    sender.send_bytes(
        json.dumps({"seen": seen, "finding": asdict(finding) if finding else None, "ended": ended}).encode()
    )
    seen.clear()


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
