"""Runs programs that a model wrote, each in a process of its own, behind walls, and tells which of them ran to the end.

The walls are for code that does harm by accident, which is what models write: loops without end, floods of processes,
huge lists and files, deleted folders, calls to the network. They are no boundary against an attacker: the program
runs in the same interpreter as the code that watches it, as this user, may read every file that the user may read, and
some walls stand only where the kernel grants them. Whoever has to judge hostile code runs the whole simulator in a
container or virtual machine that has no network, no secrets and nothing to lose, and throws it away afterwards.

What stands, from the outside in:

- limits: wall clock, processor time, memory, sizes and numbers of files; one session, killed as a whole at the end;
- "namespaces" (Linux, where granted): no network, no sight of other processes, and whatever the program started dies
  with it;
- "files" (Linux, where granted): everything is read-only but the working folder, a small file system in memory;
- "seccomp" (Linux on 64-bit x86 or ARM): the kernel refuses new processes, other programs, sockets, signals;
- "audit" (everywhere): Python's own events of that kind end the program, as do writes outside its folder.

Source: the traps are those of HumanEval's execution.py (Chen et al., "Evaluating Large Language Models Trained on
Code", 2021), which disables functions in the same interpreter instead; PEP 578 for audit hooks.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from data_partitions.errors import DataError
from data_partitions.programs.child import WALLS

START_SECONDS = 60.0
"""What a loaded machine may need to start Python."""
BOOT = "import sys; sys.path.append(sys.argv[1]); from data_partitions.programs.child import main; main(sys.argv[2:])"


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        seconds: of the wall clock, which ends programs that sleep; wide, so that a busy machine changes no verdict.
        cpu_seconds: of processor time, all threads together, whole. HumanEval allows 3 seconds by the wall clock, which
            MBPP/123's own solution may need.
        memory_bytes: of address space, at least 2^26, as Python itself needs some.
        file_bytes: of one file, and of all of them where the wall "files" stands.
        open_files: at a time, at least 16.
        processes: processes and threads at a time, in namespaces, where root is not concerned.

    Raises:
        DataError: for a value out of range.
    """

    seconds: float = 20.0
    cpu_seconds: int = 6
    memory_bytes: int = 2**30
    file_bytes: int = 2**24
    open_files: int = 32
    processes: int = 32

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise DataError(f"seconds is {self.seconds!r}, expected a number above 0: give e.g. 20")
        least = {"cpu_seconds": 1, "memory_bytes": 2**26, "file_bytes": 2**12, "open_files": 16, "processes": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int) or given < value:
                raise DataError(f"{name} is {given!r}, expected a whole number of at least {value}: give a larger one")


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Attributes:
        passed: whether it ran through its last line, and all threads that it started came to an end.
        reason: "passed", "timed out", the name of the exception that ended it, "refused: " and the event that an audit
            hook saw, "killed by signal 9", or "ended before its last line".
        walls: those of `WALLS` that stood around it.
    """

    passed: bool
    reason: str
    walls: tuple[str, ...]


def run_program(program: str, limits: Limits = Limits(), walls: Sequence[str] = WALLS) -> Verdict:
    """Runs a program and says how it ended.

    It sees Python's standard library and nothing else: no other packages, no arguments, no environment, an empty
    standard input, an empty folder. What it writes to its standard output is lost. Hashes of texts are the same in
    every run. Its `__name__` is "program".

    Success is a token that is drawn for the run and sent behind the program's last line; no exit status counts.

    Args:
        program: the text of the program, its tests included.
        limits: what it may use.
        walls: which walls to build, where the system grants them; fewer only to test the others.

    Returns:
        The verdict; about 30 ms of processor time after the program's own.

    Raises:
        DataError: where the system does not let Python start, or has no `fork`.
    """
    with tempfile.TemporaryDirectory(prefix="fedsim-", ignore_cleanup_errors=True) as made:
        folder = str(Path(made).resolve())
        root = str(Path(__file__).resolve().parent.parent.parent)
        seconds, *numbers = astuple(limits)
        # As -I, but for the environment, which is empty save for the seed of hashes; -B as it may write no cache.
        command = [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", BOOT, root, folder, " ".join(walls)]
        with subprocess.Popen(
            [*command, *map(str, (seconds, *numbers))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        ) as started:
            try:
                # A lone surrogate, which no file can hold, is the program's error and not this one's.
                text = program.encode("utf-8", "surrogatepass")
                said, complaint = started.communicate(text, seconds + START_SECONDS)
            except subprocess.TimeoutExpired:
                return Verdict(False, "timed out", ())
            finally:
                started.kill()
    if started.returncode or not said:
        lines = complaint.decode("utf-8", "replace").strip().splitlines() or [f"status {started.returncode}"]
        raise DataError(
            f"the sandbox for programs did not start ({lines[-1]}), expected Python to run on Linux or macOS: correct"
            f" the installation or do without judging programs"
        )
    passed, names, reason = said.decode().split("\n", 2)
    return Verdict(passed == "1", reason, tuple(names.split()))


def passes(program: str, limits: Limits = Limits()) -> bool:
    """Tells whether a program runs through its last line; see `run_program`."""
    return run_program(program, limits).passed
