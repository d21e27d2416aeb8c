"""Programs that do harm by accident: each is survived, counted as failed, and leaves nothing behind."""

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from data_partitions.errors import DataError
from data_partitions.programs.sandbox import WALLS, Limits, Verdict, passes, run_program

SHORT = Limits(seconds=0.3, cpu_seconds=1)
"""For what never ends; what does is given WIDE, as a busy machine may take long over it."""
WIDE = Limits()
ALONE = [("namespaces",), ("namespaces", "files"), ("seccomp",), ("audit",)]


def still_running(folder: Path) -> list[psutil.Process]:
    """Processes of programs that were started below a folder; a fork keeps the command line that names it."""
    running = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []) and process.pid != os.getpid():
            running.append(process)
    return running


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs get their folders; when a test is over it is empty and none of its processes runs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert still_running(folder) == []
    assert list(folder.iterdir()) == []


def run_behind(program: str, walls: tuple[str, ...], limits: Limits = WIDE) -> Verdict:
    """Runs a program behind some walls alone, where this system grants them."""
    refused = set(walls) - set(granted())
    if refused:
        pytest.skip(f"this system does not grant {' and '.join(sorted(refused))}")
    verdict = run_program(program, limits, walls)
    assert verdict.walls == walls
    return verdict


@functools.cache
def granted() -> tuple[str, ...]:
    """The walls that this system can build."""
    return run_program("").walls


FAILS = {
    "an endless loop": ("while True: pass", "timed out"),
    "an endless loop that catches all": (
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        "timed out",
    ),
    "an endless sleep": ("import time\ntime.sleep(60)", "timed out"),
    "an endless thread": (
        "import threading\ndef loop():\n  while True: pass\nthreading.Thread(target=loop).start()",
        "timed out",
    ),
    "endless output": ("while True: print('x' * 10**6)", "timed out"),
    "a fork bomb": ("import os\nwhile True: os.fork()", "refused: os.fork"),
    "a fork bomb that catches all": (
        "import os\nwhile True:\n  try: os.fork()\n  except BaseException: pass",
        "refused: os.fork",
    ),
    "a child that outlives its parent": (
        "import multiprocessing, time\nmultiprocessing.Process(target=time.sleep, args=(60,)).start()",
        "refused: os.fork",
    ),
    "a list of 10 GB": ("x = [0] * (10 * 2**30 // 8)", "MemoryError"),
    "a shell": ("import os\nos.system('true')", "refused: os.system"),
    "another program": ("import subprocess\nsubprocess.run(['true'])", "refused: subprocess.Popen"),
    "another program in this one's place": ("import os\nos.execv('/bin/true', ['true'])", "refused: os.exec"),
    "the part of subprocess that starts": (
        "import sys\ndel sys.modules['_posixsubprocess']\nimport _posixsubprocess",
        "refused: import",
    ),
    "C": ("import ctypes", "refused: import"),
    "killing others": ("import os\nos.kill(os.getppid(), 9)", "refused: os.kill"),
    "a huge file": ("open('huge', 'wb').write(bytes(2**26))", "OSError"),
    "a file elsewhere": ("open('../elsewhere', 'w')", "refused: open"),
    "a pipe elsewhere": ("import os\nos.mkfifo('../elsewhere')", "AttributeError"),
    "reading standard input": ("input()", "EOFError"),
    "looking up a host": ("import socket\nsocket.create_connection(('localhost', 80))", "refused: socket.getaddrinfo"),
    "leaving before the tests": ("import sys\nsys.exit(0)\nassert False", "SystemExit"),
    "leaving at once before the tests": ("import os\nos._exit(0)\nassert False", "ended before its last line"),
    "its own word for it": ("raise type('passed', (Exception,), {})", "passed"),
    "a wrong answer": ("assert 1 + 1 == 3", "AssertionError"),
    "no Python": ("def f(:", "SyntaxError"),
    "text that is none": ("\ud800", "UnicodeEncodeError"),
}


@pytest.mark.parametrize("name", FAILS)
def test_fails(name: str) -> None:
    program, reason = FAILS[name]
    verdict = run_program(program, SHORT if reason == "timed out" else WIDE)
    assert (verdict.passed, verdict.reason) == (False, reason)


def test_processor_time_ends_a_program_before_the_clock_does() -> None:
    """In a process namespace of its own and without."""
    started = time.monotonic()
    limits = Limits(seconds=60.0, cpu_seconds=1)
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda walls: run_program("while True: pass", limits, walls), (WALLS, ("audit",))))
    assert [(verdict.passed, verdict.reason) for verdict in verdicts] == [(False, "timed out")] * 2
    assert time.monotonic() - started < 40


PASSES = {
    "nothing": "",
    "output": "import sys\nprint('x')\nprint('y', file=sys.stderr)",
    "files of its own": (
        "import os, shutil, tempfile\nos.mkdir('a')\nopen('a/b', 'w').write('c')\nassert open('a/b').read() == 'c'\n"
        "os.rename('a', 'd')\nshutil.rmtree('d')\nassert os.listdir() == []\n"
        "with tempfile.TemporaryDirectory() as folder: open(folder + '/a', 'w').write('b')\nopen(os.devnull, 'w')"
    ),
    "threads that end": (
        "import threading\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "assert list(ThreadPoolExecutor(2).map(abs, [-1])) == [1]\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    ),
    "asyncio": "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
    "modules that could start programs": "import subprocess, platform, unittest.mock",
    "a main part that is not run": "import dataclasses\nif __name__ == '__main__': input()",
    "no package and no environment": (
        "import importlib.util, os, sys\nassert importlib.util.find_spec('numpy') is None\n"
        "assert set(os.environ) <= {'PYTHONHASHSEED', 'HOME', 'TMPDIR', 'LC_CTYPE'}\nassert sys.argv == ['']\n"
        "assert 'data_partitions' not in sys.modules"
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes(name: str) -> None:
    assert run_program(PASSES[name]).reason == "passed"


def test_sets_of_texts_have_one_order() -> None:
    command = [sys.executable, "-S", "-c", "print(hash('fedsim'))"]
    value = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True, text=True).stdout
    assert passes(f"assert hash('fedsim') == {value}")


def test_the_token_is_in_no_frame() -> None:
    """A program that looks through its stack for bytes of a token's length finds none."""
    program = """
import sys
found, frame = [], sys._getframe()
while frame:
    reach = [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
    for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
        reach += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    for value in reach:
        found += value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else [value]
    frame = frame.f_back
assert len(found) > 100
assert [value for value in found if isinstance(value, bytes) and len(value) == 16] == []
"""
    assert run_program(program).reason == "passed"


def test_what_a_program_writes_for_a_token_counts_for_nothing() -> None:
    program = """
import os
for descriptor in range(3, 32):
    try: os.write(descriptor, bytes(16))
    except OSError: pass
os._exit(0)
"""
    assert not passes(program)


@pytest.mark.parametrize("walls", ALONE, ids="+".join)
def test_each_wall_alone_stops_processes(walls: tuple[str, ...]) -> None:
    """Five children that leave their group, ignore signals and sleep: not born, or dead with their parent."""
    program = """
import os, signal, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(30)
        os._exit(0)
"""
    expected = {"seccomp": "PermissionError", "audit": "refused: os.fork"}.get(walls[0], "passed")
    assert run_behind(program, walls).reason == expected


@pytest.mark.parametrize("walls", [(), *ALONE, WALLS], ids=lambda walls: "+".join(walls) or "none")
def test_each_wall_alone_stops_the_network(walls: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]})).close()"
        verdict = run_behind(program, walls)
        assert verdict.passed == (walls == ())
        if walls:
            with pytest.raises(BlockingIOError):
                server.accept()
        else:
            server.accept()[0].close()


@pytest.mark.parametrize("walls", [(), ("namespaces", "files"), ("audit",), WALLS], ids=lambda w: "+".join(w) or "none")
def test_each_wall_alone_saves_files(walls: tuple[str, ...], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    harms = [
        ("open", f"open({str(kept)!r}, 'w')"),
        ("open", f"import os\nos.unlink('kept', dir_fd=os.open({str(tmp_path)!r}, os.O_RDONLY))"),
        ("os.remove", f"import os\nos.remove({str(kept)!r})"),
        ("os.rename", f"import os\nos.rename({str(kept)!r}, 'mine')"),
        ("shutil.rmtree", f"import shutil\nshutil.rmtree({str(tmp_path / 'folder')!r})"),
        ("os.symlink", f"import os\nos.symlink({str(kept)!r}, 'mine')\nopen('mine', 'w')"),
    ]
    for event, harm in harms:
        (tmp_path / "folder").mkdir(exist_ok=True)
        kept.write_text("kept")
        verdict = run_behind(harm, walls)
        if walls:
            assert not verdict.passed
            assert verdict.reason == (f"refused: {event}" if "audit" in walls else "OSError")
        saved = kept.exists() and kept.read_text() == "kept" and (tmp_path / "folder").is_dir()
        assert saved == (walls != ()), event


def test_many_small_files_fit_no_better_than_a_huge_one() -> None:
    program = "for number in range(20): open(str(number), 'wb').write(bytes(2**20))"
    assert run_behind(program, ("namespaces", "files"), Limits(file_bytes=2**24)).reason == "OSError"


def test_a_program_dies_with_its_guard(place: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    refused: list[Exception] = []

    def run() -> None:
        try:
            run_program("import time\ntime.sleep(60)", Limits(seconds=60.0))
        except DataError as error:
            refused.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + 30
    while len(running := still_running(place)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    next(process for process in running if process.ppid() == os.getpid()).kill()
    thread.join(30)
    assert len(refused) == 1
    while still_running(place) and time.monotonic() < until:
        time.sleep(0.02)


def test_the_hook_stands_everywhere() -> None:
    assert "audit" in granted()


def test_a_sandbox_that_does_not_start_is_no_failed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(DataError, match=r"the sandbox for programs did not start \(status 1\), expected Python"):
        passes("")


@pytest.mark.parametrize(
    ("name", "value"),
    [("seconds", 0.0), ("seconds", float("nan")), ("cpu_seconds", 0.5), ("memory_bytes", 1000), ("open_files", True)],
)
def test_refuses_limits(name: str, value: float) -> None:
    with pytest.raises(DataError, match=rf"{name} is {value}, expected a (whole )?number"):
        Limits(**{name: value})
