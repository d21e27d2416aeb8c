"""The other side of `sandbox`: a process that walls a program in, runs it, and says how it ended.

Two processes: a guard, and its child, in which the program runs. The guard never runs a line of the program; it holds
the clock, kills the child and, where the kernel grants a process namespace, with it everything that the child started.

This file imports little, as it is the start of thousands of processes.
"""

from __future__ import annotations

import os
import resource
import select
import sys
import time

from data_partitions.programs import linux

TYPE_CHECKING = False  # typing's own costs a tenth of a program's start.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WALLS = ("namespaces", "files", "seccomp", "audit")
START_SECONDS = 30.0
"""What a loaded machine may need to build the walls."""
TOKEN_BYTES = 16
REPORT_BYTES = 4096
SIGKILL, SIGXCPU = 9, 24  # The module signal is slow to import.
LINUX = sys.platform == "linux"
REFUSED_EVENTS = (
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "subprocess.Popen", "pty.spawn"),
    *("socket.", "ctypes.", "syslog.", "resource.setrlimit", "resource.prlimit"),
    *("gc.get_", "sys._current_", "sys.addaudithook", "cpython.PyInterpreterState_New"),
)
"""Beginnings of the events that end a program: processes, the network, C, limits, and looking into other frames."""
REFUSED_IMPORTS = (
    *("ctypes", "_ctypes", "_posixsubprocess", "_dbm", "_gdbm"),
    *("_xxsubinterpreters", "_interpreters", "_testcapi", "_testinternalcapi"),
)
"""Modules that start processes, write files or leave the hook behind without an event of their own."""
PATH_EVENTS = (
    *("os.chflags", "os.chmod", "os.chown", "os.setxattr", "os.removexattr", "os.truncate", "os.utime"),
    *("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
    *("shutil.chown", "shutil.move", "shutil.rmtree", "sqlite3.connect"),
)
"""Events of writing whose arguments are paths."""
UNHEARD = ("mkfifo", "mknod")
"""Functions of os that write without an event, and are taken away."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(arguments: list[str]) -> None:
    """Reads a program from standard input, runs it behind walls, and writes how it ended to standard output.

    Args:
        arguments: the working folder, the walls wanted, and the values of `sandbox.Limits` in their order.
    """
    folder, wanted = arguments[0], arguments[1].split()
    seconds, *limits = float(arguments[2]), *map(int, arguments[3:])
    program = b"".join(iter(lambda: os.read(0, 1 << 16), b"")).decode("utf-8", "surrogatepass")
    apart = LINUX and "namespaces" in wanted and linux.enter_namespaces()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            walls = _build_walls(folder, wanted, apart, limits)
            for step in _steps(program, folder, walls, writing):
                step()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    os.close(writing)
    report, ended = _listen(reading, seconds)
    _print_verdict(report, _kill(child, ended, limits[0]))


def _listen(reading: int, seconds: float) -> tuple[bytes, bool]:
    """What the child wrote until it ended, and whether it did so in time, counted from where its walls stand."""
    report, deadline = b"", time.monotonic() + START_SECONDS
    while len(report) <= REPORT_BYTES:
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return report, False
        if not (more := os.read(reading, REPORT_BYTES)):
            break
        if not report:
            deadline = time.monotonic() + seconds
        report += more
    return report, True


def _kill(child: int, ended: bool, cpu_seconds: int) -> str:
    """Ends the child and its group, and says what stands against it; nothing where it ended by itself."""
    for kill in (os.killpg, os.kill):
        try:
            kill(child, SIGKILL)
        except OSError:  # It is over already, or does not lead a group yet.
            continue
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    # The kernel counts by ticks where it kills, and exactly where it reports: half of the limit tells it from others.
    if not ended or (code in (-SIGKILL, -SIGXCPU) and used.ru_utime + used.ru_stime > 0.5 * cpu_seconds):
        return "timed out"
    return f"killed by signal {-code}" if code < 0 else ""


def _print_verdict(report: bytes, against: str) -> None:
    """Writes three lines for `sandbox`: 1 or 0, the walls that stood, the reason."""
    token, rest = report[:TOKEN_BYTES], report[TOKEN_BYTES:]
    walls, started, said = rest.partition(b"\n")
    if not started:
        sys.exit(1)  # What kept the walls from being built is on standard error.
    passed = said == token and not against
    if said and said != token:
        reason = said.decode("utf-8", "replace")[:200]
    else:
        reason = against or ("passed" if passed else "ended before its last line")
    sys.stdout.write(f"{passed:d}\n{walls.decode()}\n{reason}")


def _build_walls(folder: str, wanted: list[str], apart: bool, limits: list[int]) -> list[str]:
    """Limits this process; returns the walls that stand, the hook among them, which goes up right before the program.

    Args:
        folder: the working folder.
        wanted: names out of `WALLS`.
        apart: whether this process lives in namespaces of its own.
        limits: cpu_seconds, memory_bytes, file_bytes, open_files, processes.
    """
    cpu_seconds, memory_bytes, file_bytes, open_files, processes = limits
    os.setsid()
    walls = ["namespaces"] if apart else []
    if LINUX:
        linux.die_with_parent()
        if apart and "files" in wanted and linux.close_files(folder, file_bytes):
            walls.append("files")
        linux.drop_capabilities()
        if "seccomp" in wanted and linux.refuse_calls():
            walls.append("seccomp")
    if apart:  # Elsewhere the user's other processes would count too.
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    os.close(os.open(os.__file__, os.O_RDONLY))  # Without its rights, root may not reach another user's Python.
    return [*walls, "audit"] if "audit" in wanted else walls


def _steps(program: str, folder: str, walls: list[str], writing: int) -> Iterator[Callable[[], None]]:
    """The program, and what says that it ran to its end.

    The token is drawn here and lives on in the second step alone, to which no frame of the running program's stack has
    a name: they are in an iterator, which shows nothing.
    """
    token = os.urandom(TOKEN_BYTES)
    write, leave = os.write, os._exit

    def report() -> None:
        write(writing, token)
        leave(0)

    def fail(reason: str) -> None:
        write(writing, reason.encode("utf-8", "replace")[:200])
        leave(1)

    def run() -> None:
        try:
            module = type(sys)("program")
            sys.modules["program"] = module
            exec(compile(program, "<program>", "exec"), module.__dict__)
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()  # A thread that never ends is no end of the program.
        except BaseException as error:
            fail(type(error).__name__)

    _forget_this()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    write(writing, token + " ".join(walls).encode() + b"\n")
    if "audit" in walls:
        for module in (os, sys.modules["posix"]):
            for name in UNHEARD:
                vars(module).pop(name, None)
        sys.addaudithook(_audit_hook(folder, fail))
    return iter((run, report))


def _forget_this() -> None:
    """Takes away from the program what this file has imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in {"ctypes", "_ctypes", "data_partitions"}]:
        del sys.modules[name]
    sys.argv[:] = [""]
    sys.path.pop()
    # Importing subprocess, as much of the standard library does, is no harm as long as it starts nothing.
    sys.modules["_posixsubprocess"] = stub = type(sys)("_posixsubprocess")
    stub.fork_exec = None  # type: ignore[attr-defined]


def _audit_hook(folder: str, fail: Callable[[str], None]) -> Callable[[str, tuple[object, ...]], None]:
    """Makes the hook that ends the process at the first event that is refused, so that no `except` goes on."""
    realpath, decode, isdir = os.path.realpath, os.fsdecode, os.path.isdir
    inside, harmless, unix = folder + "/", (os.devnull, ":memory:"), 1

    def outside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = decode(path)
        return name not in harmless and not f"{realpath(name)}/".startswith(inside)

    def refused(event: str, args: tuple[object, ...]) -> bool:
        if event == "open":
            path, mode, flags = args
            if not isinstance(flags, int) or not outside(path):
                return False
            # A folder that os.open has opened, which gives no mode, names files without their paths: dir_fd.
            return bool(flags & WRITES) or (mode is None and isdir(path))  # type: ignore[arg-type]
        if event == "import":
            return args[0] in REFUSED_IMPORTS
        if event in PATH_EVENTS:
            return any(outside(path) for path in args)
        if event == "socket.__new__" and args[1] == unix:
            return False  # asyncio wakes itself by a pair of sockets; to connect one is an event of its own.
        return event.startswith(REFUSED_EVENTS)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if refused(event, args):
            fail(f"refused: {event}")

    return hook
