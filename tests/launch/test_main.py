"""The console command: which command runs, what it exits with, and who speaks under torchrun."""

import errno
import os
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import launch.__main__ as console
from data_partitions.errors import DataError
from fedsim.errors import ConfigurationError, TrainingError, WorkerLost
from launch.__main__ import main

FEDSIM = Path(sys.executable).parent / "fedsim"

Answers = Callable[[BaseException | int], list[Sequence[str]]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Replaces `fedsim run` by something that raises or returns what is given; returns the arguments it saw."""
    for name in ("RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)

    def set_answer(answer: BaseException | int) -> list[Sequence[str]]:
        seen: list[Sequence[str]] = []

        def command(argv: Sequence[str]) -> int:
            seen.append(argv)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        module = types.ModuleType("launch.run")
        module.main = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "launch.run", module)
        return seen

    return set_answer


@pytest.mark.parametrize("arguments", [["--help"], ["list", "methods"], ["lits"]], ids=" ".join)
def test_the_console_command_and_the_module_are_the_same(arguments: list[str], tmp_path: Path) -> None:
    both = [
        subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        for command in ([str(FEDSIM)], [sys.executable, "-m", "launch"])
    ]
    first, second = ((done.returncode, done.stdout, done.stderr) for done in both)
    assert first == second
    assert first[0] == (2 if arguments == ["lits"] else 0)
    assert bool(first[1]) != bool(first[2])


def test_the_console_command_is_this_main() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="fedsim")
    assert entry.load() is main


def test_a_command_gets_what_stands_behind_its_name(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answers(0)
    assert main(["run", "--rounds", "3"]) == 0
    monkeypatch.setattr(sys, "argv", ["fedsim", "run", "-x"])
    assert main() == 0
    assert seen == [["--rounds", "3"], ["-x"]]
    answers(7)
    assert main(["run"]) == 7


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("rounds is 0"), 2),
        (DataError("no examples"), 2),
        (TrainingError("client 3 in round 2"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(error)
    assert main(["run"]) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fedsim: {str(error) or 'interrupted'}\n")


def test_the_line_ends_with_where_it_was(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    error = TrainingError("it cannot be written")
    error.add_note("client 3")
    error.add_note("worker 1, round 2")
    answers(error)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "fedsim: it cannot be written (client 3; worker 1, round 2)\n"


def test_a_full_disk_is_one_line(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    answers(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.csv"))
    assert main(["run"]) == 1
    assert capsys.readouterr().err == (
        "fedsim: runs/x/metrics.csv: No space left on device; make room on that disk, then go on with --resume auto\n"
    )


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As in `fedsim list | head`; a process of its own, whose output is closed."""
    command, unbuffered = [sys.executable, "-m", "launch", "list"], {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=unbuffered) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_a_message_ends_somewhere(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    """It repeats what was given, which may be of any length."""
    answers(ConfigurationError(f"rounds is {'9' * 100_000}; expected a whole number"))
    assert main(["run"]) == 2
    err = capsys.readouterr().err
    assert len(err) < 2_100
    assert err.startswith("fedsim: rounds is 999")
    assert err.endswith("expected a whole number\n")


def test_several_lines_become_one(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    answers(ConfigurationError("one\n  two\tthree\n"))
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "fedsim: one two three\n"


@pytest.mark.parametrize("error", [ConfigurationError("wrong"), TrainingError("diverged")])
def test_debug_shows_the_traceback(error: Exception, answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    answers(error)
    main(["run", "--debug"])
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last == f"fedsim: {error}"


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(answers: Answers) -> None:
    answers(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["run"])


@pytest.mark.parametrize(
    "surroundings", [{"RANK": "1"}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}]
)
@pytest.mark.parametrize(
    ("error", "waits", "line"),
    [
        (ConfigurationError("wrong"), True, "fedsim: wrong\n"),
        (TrainingError("client 3 diverged"), False, "fedsim: client 3 diverged\n"),
        (WorkerLost("another stopped"), True, "fedsim: another stopped\n"),
        (KeyboardInterrupt(), False, ""),
    ],
)
def test_other_workers_wait_for_the_server_worker_where_all_meet_the_same_error(
    error: BaseException,
    waits: bool,
    line: str,
    surroundings: dict[str, str],
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The launcher ends who waits once the server worker has spoken; one worker alone knows a client that diverged."""
    answers(error)
    slept: list[float] = []
    monkeypatch.setattr(console.time, "sleep", slept.append)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert main(["run"]) != 0
    assert capsys.readouterr() == ("", line)
    assert bool(slept) == waits


def test_the_server_worker_speaks(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.time, "sleep", lambda seconds: pytest.fail("it waited"))
    answers(ConfigurationError("wrong"))
    monkeypatch.setenv("RANK", "0")
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "fedsim: wrong\n"


def test_the_server_worker_waits_too_where_another_stopped_first(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who stopped says why, and the launcher ends the rest; a line of its own would hide that one."""
    slept: list[float] = []
    monkeypatch.setattr(console.time, "sleep", slept.append)
    answers(WorkerLost("another worker stopped"))
    monkeypatch.setenv("RANK", "0")
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "fedsim: another worker stopped\n"
    assert slept == [console.SERVER_SPEAKS_SECONDS]
