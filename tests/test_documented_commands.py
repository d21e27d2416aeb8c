"""Every command in README and docs is one that its program takes, and is run by a test, or said why not."""

import argparse
import csv
import importlib
import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from torch.distributed.run import get_args_parser

from launch import search, sweep
from launch.__main__ import COMMANDS, main
from launch.configuration import read_settings
from launch.registry import PRESETS
from launch.report import read_arguments
from launch.sweeps.definition import Sweep, read_sweep
from launch.sweeps.plan import shared_arguments
from tests.documented import PAGES, ROOT, blocks, commands

RUN = {
    r"make test": ".ci/run",
    r"make (demo|docs)": "tests/launch/test_demo.py runs the five methods; .ci/run builds the site",
    r"python3 -m venv \.venv|pip install -c constraints.txt -e \.": "make in .ci/run",
    r"fedsim run .*my_extension\..*|torchrun .* runs/mine/config.yaml .*": "tests/test_extend.py",
    r"fedsim (run|report|export) .*\bruns/(first|second|again)\b.*|head .* runs/first/ledger.csv": "here",
    r"fedsim list( sweeps)?": "here, and tests/launch/test_listing.py",
    r"fedsim run --print_config": "here",
    r"fedsim submit .*--dry_run .*": "here",
}
"""Commands that are run, and by what."""

NOT_RUN = {
    r"pip install -e \.": "would take a torch of the machine's own",
    r"fedsim (run|partition) .*--(data|backbone)\.path .*": "data or backbones that are not in the repository; "
    "tests/data_partitions and tests/launch run every data set on small files of their own",
    r"fedsim run( .*)?": "half a minute or more; tests/test_methods_runs.py runs every method for fewer rounds",
    r"fedsim demo --seeds .*": "four minutes; tests/launch/test_demo.py runs it with fewer rounds",
    r"fedsim (sweep|search) .*": "minutes; tests/launch/test_sweep.py, tests/launch/test_search.py run small ones",
    r"fedsim report .*|tensorboard .*": "of runs that are not there; tests/launch/test_report.py, test_tensorboard.py",
    r"fedsim partition --partition.alpha 0.1": "tests/launch/test_partition_command.py runs such",
    r"fedsim bench .*|fedsim bench": "minutes to an hour; tests/launch/test_bench.py and others run small ones",
    r"torchrun .* --rounds 200": "a minute; tests/test_workers.py runs such with fewer rounds",
    r"torchrun --nnodes=.*": "two hosts; python -m launch.drills.hosts runs such",
    r"fedsim submit .*|sbatch .*": "a SLURM; tests/launch/test_drill_slurm.py runs such where there is one",
    r"python -m launch\.drills\..*|apt-get .*": "minutes, some as root; tests/launch/test_drill*.py run parts",
    r"python -m launch\.audit_privacy.*": "minutes; tests/launch/test_audit_privacy.py runs it with fewer trials",
    r"python -m launch\.pretrain_glyphs.*|pip download .*|unzip .*": "what results.md was measured with",
}
"""Commands that no test runs as they stand, and why; but for other people's programs, what they are given is read."""


READ_ELSEWHERE = {
    "docs/data.md": "tests/launch/test_data_docs.py",
    "docs/extend.md": "tests/test_extend.py",
    "docs/sweeps.md": "tests/launch/test_sweep_docs.py",
}
"""Pages whose commands are read, or run, by a test of their own."""


class Taken(Exception):
    """What was given has been read without a complaint; holds the options."""


@cache
def called(page: str) -> list[tuple[str, ...]]:
    with TemporaryDirectory() as folder:
        return commands(page, Path(folder))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to read commands in: with the files of settings that they name."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/FLASC-Digits-s0-0", "runs/first"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(PRESETS / "digits.yaml", tmp_path / name / "config.yaml")
    return tmp_path


def read(command: tuple[str, ...]) -> None:
    """Has a command's own parser read what it is given, and starts nothing.

    Raises:
        ConfigurationError: it does not take it.
    """
    program, *given = command
    if program == "torchrun":
        options = get_args_parser().parse_args(given)
        assert options.module
        assert options.training_script == "launch"
        given = options.training_script_args
    elif program == "sbatch":
        at = next(i for i, word in enumerate(given) if not word.startswith("-"))
        assert (ROOT / given[at]).exists()
        given = ["run", *given[at + 1 :]]
    elif program == "python":
        assert given[0] == "-m"
        return parse(given[1], given[2:])
    elif program == "make":
        assert f"\n{given[0]}:" in (ROOT / "Makefile").read_text()
        return None
    elif program != "fedsim":
        return None
    return read_own(given)


def read_own(given: list[str]) -> None:
    what, *rest = given
    at = rest.index("--") if "--" in rest else len(rest)
    if what in ("run", "partition") and "--print_config" not in rest:
        read_settings(rest)
    elif what == "submit" or (what == "sweep" and "--config" not in rest[:at]):
        assert main([what, *rest[:at], "--dry_run", *rest[at:]]) == 0
    elif what in ("search", "sweep"):  # every run of a file has its test: tests/launch/test_paper_sweeps.py
        config = (search if what == "search" else sweep).read_options(rest[:at]).config
        read_settings(shared_arguments(read_sweep(config) if config else Sweep(), rest[at + 1 :]))
    elif what == "report":
        read_arguments(rest)
    elif what == "run":  # --print_config, which leaves
        with pytest.raises(SystemExit, match=r"^0$"):
            main([what, *rest])
    elif what == "list":
        assert main([what, *rest]) == 0
    else:
        parse(COMMANDS[what][0], rest)


def parse(module: str, given: list[str]) -> None:
    """Enters a main, and leaves it when its arguments are read."""
    whole = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: object) -> None:
        raise Taken(whole(parser, *arguments))

    enter = importlib.import_module(module).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Taken):
            enter(given)


def once(page: str) -> list[tuple[str, ...]]:
    """A page's commands, those that differ by seed and directory but once."""
    found: dict[str, tuple[str, ...]] = {}
    for command in called(page):
        line = re.sub(r" --(seed \d+|run_dir \S+)", "", shlex.join(command))
        found.setdefault(line, command)
    return list(found.values())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash") and page not in READ_ELSEWHERE])
def test_what_a_page_says_is_taken(page: str, here: Path) -> None:
    wrong = []
    for command in once(page):
        for folder in (word for word in command if "FOLDER" in word or word.endswith(("/model", "-glyphs"))):
            (here / folder).mkdir(parents=True, exist_ok=True)
        try:
            read(command)
        except (Exception, SystemExit) as error:
            wrong.append(f"{shlex.join(command)}: {error}")
    assert wrong == []


def test_what_is_not_taken_is_told(here: Path) -> None:
    """The test above can fail: for a key, an option, a method, a target and a module that are not there."""
    for line in (
        "fedsim run --method.upload_densty 1",
        "fedsim search --rank 1 -- --rounds 2",
        "fedsim search --ranks 1 2 -- --round 2",
        "fedsim submit --node 2 -- --rounds 2",
        "fedsim sweep --grid method.lora_rnk=1,2",
        "fedsim bench --wrok x",
        "fedsim report runs/first --target accuracy",
        "torchrun --nproc_per_node=2 -m launch run --methd LoRA",
        "torchrun --nproc_pr_node=2 -m launch run",
        "sbatch launch/slurm/no.sbatch",
        "python -m launch.no",
        "make no",
    ):
        with pytest.raises((Exception, SystemExit)):
            read(tuple(shlex.split(line)))


def test_every_command_is_run_or_said_why_not() -> None:
    lines = {shlex.join(command) for page in PAGES for command in called(page)}
    patterns = [*RUN, *NOT_RUN]
    first = {line: next((p for p in patterns if re.fullmatch(p, line)), None) for line in lines}
    assert [line for line, pattern in first.items() if pattern is None] == []
    assert [pattern for pattern in patterns if pattern not in first.values()] == []  # nothing stale
    for told in (*RUN.values(), *NOT_RUN.values(), *READ_ELSEWHERE.values()):
        for path in re.findall(r"tests/[\w/*]+(?:\.py)?|\.ci/run", told):
            assert [*ROOT.glob(path)], path


def test_the_first_page_works_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/start.md: runs that go on, report, export, PEFT; and the numbers that it tells."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    for program, *given in called("docs/start.md"):
        if program == "fedsim" and not {"list", "--print_config"} & {*given}:
            assert main(given) == 0
    page = (ROOT / "docs" / "start.md").read_text()
    (told,) = re.findall(r"round 10/10  accuracy (\S+)", page)
    (shown,) = re.findall(r"round 10/10  accuracy (\S+)", capsys.readouterr().out.partition("runs/first\n")[0])
    assert float(told) == pytest.approx(float(shown), abs=0.05)
    with (tmp_path / "runs" / "first" / "ledger.csv").open() as file:
        assert ",".join(csv.DictReader(file).fieldnames or ()) in page
    (megabytes,) = re.findall(r"FLASC has uploaded (\S+) MB after 20 rounds, LoRA (\S+) MB", page)
    for name, number in zip(("first", "second"), megabytes, strict=True):
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        assert summary["rounds"] == 20
        assert summary["upload_bytes"] / 1e6 == pytest.approx(float(number), rel=0.01)
    (code,) = blocks("docs/start.md", "python")
    names: dict[str, object] = {}
    exec(code, names)
    assert type(names["model"]).__name__ == "PeftModel"
