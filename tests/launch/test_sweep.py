"""`fedsim sweep`: what is run and what it is called, what stays, what is refused before anything starts."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from fedsim import simulation
from fedsim.checkpoint import save_checkpoint
from fedsim.errors import ConfigurationError, RunStopped
from launch.__main__ import main
from launch.environment import visible_gpus
from launch.sweeps.definition import Sweep, as_arguments, parse_grid, sweep_of
from launch.sweeps.plan import LONGEST_NAME, PlannedRun, plan_runs
from launch.sweeps.results import conclude
from launch.sweeps.runner import Outcome, _begin, run_with
from tests.launch.test_report import write_run
from tests.launch.test_submit import SBATCH, asked, fake

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--data", "tests.battery.FewDigits", "--partition.clients", "4", "--cohort_size", "2", "--client.max_steps", "1"),
    *("--rounds", "2", "--evaluate_every_rounds", "1"),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(**entries: Any) -> list[PlannedRun]:
    return plan_runs(sweep_of(entries), [], Path("out"))


def names(**entries: Any) -> list[str]:
    return [run.folder.name for run in planned(**entries)]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.glob("*/**/*") if path.is_file()}


def table(out: Path) -> list[dict[str, str]]:
    with (out / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_list_is_crossed_with_a_grid_and_seeds() -> None:
    runs = planned(
        base="lora_cifar10_small",
        keys={"rounds": 3},
        runs=[{"method": "LoRA"}, {"method": "FLASC", "method.upload_density": 0.25}],
        grid={"method.lora_rank": [1, 4]},
        seeds=[0, 7],
    )
    assert [run.folder.name for run in runs] == [
        "method=LoRA,lora_rank=1-s0",
        "method=LoRA,lora_rank=4-s0",
        "method=FLASC,upload_density=0.25,lora_rank=1-s0",
        "method=FLASC,upload_density=0.25,lora_rank=4-s0",
        "method=LoRA,lora_rank=1-s7",
        "method=LoRA,lora_rank=4-s7",
        "method=FLASC,upload_density=0.25,lora_rank=1-s7",
        "method=FLASC,upload_density=0.25,lora_rank=4-s7",
    ]
    settings = runs[7].read()
    assert (settings.method.lora_rank, settings.method.upload_density) == (4, 0.25)  # type: ignore[attr-defined]
    assert (settings.run.seed, settings.run.rounds, settings.resume) == (7, 3, "auto")
    assert type(settings.data).__name__ == "CIFAR10"
    assert settings.run_dir == runs[7].folder
    assert len({run.identity for run in runs}) == 8


def test_nested_keys_are_as_good_as_dotted_ones() -> None:
    nested = planned(
        keys={"client": {"lr": 0.1}},
        runs=[{"method": {"class_path": "FLASC", "init_args": {"upload_density": 0.5}}}],
        grid={"server": {"betas": [[0.9, 0.99], [0.8, 0.9]]}},
    )
    dotted = planned(
        keys={"client.lr": 0.1},
        runs=[{"method": "FLASC", "method.upload_density": 0.5}],
        grid={"server.betas": [[0.9, 0.99], [0.8, 0.9]]},
    )
    assert nested == dotted
    assert nested[1].read().server.betas == (0.8, 0.9)


def test_names_tell_runs_apart_and_are_safe() -> None:
    """A key's group is left out where its name says enough; a name stands for the keys that it alone has."""
    assert names(grid={"client.lr": [0.1, "1e-3"]}, seeds=[3]) == ["client.lr=0.1-s3", "client.lr=1e-3-s3"]
    assert names(seeds=[0, 1]) == ["s0", "s1"]
    assert names(grid={"method.download_density": [None]}) == ["download_density=null-s0"]
    assert names(runs=[{"name": "wide one", "method.lora_rank": 9}, {"rounds": 7}]) == ["wide_one-s0", "rounds=7-s0"]
    assert names(runs=[{"name": "a"}], grid={"rounds": [1, 2]}) == ["a,rounds=1-s0", "a,rounds=2-s0"]
    assert names(grid={"backbone.path": ["/some/where/vit", "glyphs"]}) == ["path=vit-s0", "path=glyphs-s0"]
    alike = names(grid={"backbone.path": ["/some/vit", "/other/vit"]})
    assert len({*alike}) == 2
    assert all(name.startswith("path=vit-") for name in alike)
    runs = [{"name": "a b", "rounds": 1}, {"name": "a_b", "rounds": 2}, {"name": "c", "rounds": 1}]
    alike = names(runs=runs)
    assert len({*alike}) == 2
    assert all(name.startswith("a_b-") for name in alike)
    assert names(runs=[*runs[:1], *runs[:1]]) == ["a_b-s0"]
    (long,) = names(runs=[{"name": "x" * 300}])
    assert LONGEST_NAME < len(long) < LONGEST_NAME + 20


def test_what_comes_to_the_same_is_run_once() -> None:
    """A run whose keys say what the base says anyway, by another name; and what has no effect on a result."""
    runs = [{}, {"method.upload_density": 0.25}, {"checkpoint_every_rounds": 3}, {"method.upload_density": 0.5}]
    assert names(runs=runs, seeds=[0, 0]) == ["s0", "upload_density=0.5-s0"]


def test_a_runs_own_keys_win_over_those_for_all() -> None:
    sweep = sweep_of({"keys": {"rounds": 1, "cohort_size": 3}, "grid": {"cohort_size": [4]}})
    settings = plan_runs(sweep, ["--rounds=2", "--cohort_size=9"], Path("out"))[0].read()
    assert (settings.run.rounds, settings.run.cohort_size) == (2, 4)


def test_a_class_is_chosen_before_its_own_keys() -> None:
    assert as_arguments({"method.lora_rank": 1, "method": "LoRA"}) == ["--method=LoRA", "--method.lora_rank=1"]
    assert as_arguments({"client.max_steps": None, "client.compile": True}) == [
        "--client.max_steps=null",
        "--client.compile=true",
    ]


def test_a_grid_on_the_command_line() -> None:
    assert parse_grid("method.lora_rank=1,4") == ("method.lora_rank", [1, 4])
    assert parse_grid("server.betas=[0.9, 0.99],[0.8,0.9]") == ("server.betas", [[0.9, 0.99], [0.8, 0.9]])
    assert parse_grid("--method=LoRA,FLASC") == ("method", ["LoRA", "FLASC"])
    for wrong in ("rounds", "rounds=", "=1,2", "rounds=[1", "rounds=]"):
        with pytest.raises(ConfigurationError, match="expected KEY=VALUE,VALUE"):
            parse_grid(wrong)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"gird": {}}, "unknown entry of a sweep 'gird'; did you mean grid?"),
        ({"runs": {"method": "LoRA"}}, "runs is .* expected a list"),
        ({"runs": ["LoRA"]}, "'LoRA' is no run; expected keys with values"),
        ({"grid": {"rounds": 3}}, r"rounds is 3; expected a list of its values"),
        ({"grid": {"rounds": []}}, r"rounds is \[\]; expected a list"),
        ({"seeds": [-1]}, "seeds is"),
        ({"seeds": []}, "seeds is"),
        ({"seeds": [0], "grid": {"seed": [1]}}, "give one of both"),
        ({"keys": {"run_dir": "x"}}, "run_dir is no key that runs of a sweep can have"),
        ({"keys": {"config": "digits"}}, "under base:"),
        ({"base": "digist"}, "did you mean digits"),
        ({"grid": {"ruonds": [3]}}, "did you mean rounds"),
        ({"runs": [{"method": "LoRA"}], "grid": {"method.upload_density": [0.5]}}, "upload_density"),
        ({"grid": {"rounds": [3, 0]}}, "rounds is 0"),
        ({"grid": {"client.module": ["a\nb"]}}, "more than one line"),
    ],
    ids=str,
)
def test_what_is_no_sweep(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        planned(**entries)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--config FILE", "--grid", "--seeds"]),
        (["--rounds", "3"], ["--rounds is no option of fedsim sweep", "behind --"]),
        (["--seeds", "0", "--", "--jobs=2"], ["--jobs stands behind --", "fedsim sweep --jobs"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml is no file"]),
        (["--seeds", "0", "--jobs", "0"], ["--jobs is 0"]),
        (["--seeds", "0", "--nodes", "2"], ["--nodes", "--slurm"]),
        (["--seeds", "0", "--sampler", "Nonsense"], ["--sampler", "--optuna"]),
        (["--seeds", "0", "--", "--ruonds", "3"], ["ruonds", "rounds"]),
        (["--grid", "rounds=1,0"], ["rounds is 0", "in the run --rounds=0"]),
        (["--seeds", "0", "--", "--resume=never"], ["--resume=never", "leave it out"]),
        (["--config", "s.yaml"], ["s.yaml: unknown entry of a sweep 'gird'"]),
        (["--config", "t.yaml"], ["--target", "accuracy=high"]),
        (["--config", "o.yaml"], ["report: out is elsewhere", "leave it out"]),
        (["--config", "b.yaml", "--", "--config", "digits"], ["base: digits", "leave one out"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    argv: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "s": "gird: {}",
        "t": "report: {target: accuracy=high}",
        "o": "{seeds: [0], report: {out: elsewhere}}",
        "b": "base: digits",
    }
    for name, text in files.items():
        (here / f"{name}.yaml").write_text(text)
    assert main(["sweep", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert all(word in err for word in words), err
    assert not [path for path in here.iterdir() if path.suffix != ".yaml"]


def test_a_dry_run_shows_runs_that_can_be_pasted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--grid", "rounds=1,2", "--dry_run", "--", "--seed", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "runs/sweep/rounds=1-s4: fedsim run --seed 4 --rounds=1",
        "runs/sweep/rounds=2-s4: fedsim run --seed 4 --rounds=2",
        "2 runs, 0 finished",
    ]
    assert not list(here.iterdir())


def test_a_sweep_runs_reports_and_keeps_what_is_finished(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "--out", "out", "--grid", "method.lora_rank=1,2", "--seeds", "0", "1"]
    assert main([*command, "--", *TINY]) == 0
    found = table(here / "out")
    assert [row["run"] for row in found] == ["lora_rank=1-s0", "lora_rank=2-s0", "lora_rank=1-s1", "lora_rank=2-s1"]
    assert [(row["method.lora_rank"], row["seed"]) for row in found] == [("1", "0"), ("2", "0"), ("1", "1"), ("2", "1")]
    for row in found:
        summary = json.loads((here / "out" / row["run"] / "summary.json").read_text())
        assert float(row["final/accuracy"]) == summary["final"]["accuracy"]
        assert int(row["upload_bytes"]) == summary["upload_bytes"]
    report = (here / "out" / "report.csv").read_text()
    assert report.count("\n") == 3
    assert "0 1,accuracy" in report

    before = contents(here / "out")
    capsys.readouterr()
    assert main([*command, "--", *TINY]) == 0
    said = capsys.readouterr().out
    assert "4 runs, 4 finished" in said
    assert said.count("is finished and stays") == 4
    assert contents(here / "out") == before

    assert main([*command, "--", *TINY, "--client.lr", "0.5"]) == 2  # nothing of it is run
    said = capsys.readouterr().err
    assert "out/lora_rank=1-s0 holds a run with other settings (client.lr was 0.02 and is 0.5)" in said
    assert contents(here / "out") == before

    assert main([*command, "--", *TINY, "--rounds", "3", "--checkpoint_every_rounds", "3"]) == 0  # goes on from round 2
    assert {row["run"]: row["settings"] for row in table(here / "out")} != {
        row["run"]: row["settings"] for row in found
    }
    assert main([*command, "--", *TINY]) == 2
    assert "rounds was 3 and is 2" in capsys.readouterr().err


def test_a_sweep_draws_the_report_that_its_file_asks_for(here: Path) -> None:
    """A list of values and a flag among the options, and the runs' directories after them."""
    text = "base: digits\ngrid: {method.lora_rank: [1, 2], method.upload_density: [0.5, 1.0]}\nkeys: {method: FLASC}\n"
    report = "report: {heat_map: [method.lora_rank, method.upload_density], html: true, against: total}\n"
    (here / "grid.yaml").write_text(text + report)
    assert main(["sweep", "--config", "grid.yaml", "--out", "out", "--", *TINY]) == 0
    assert (here / "out" / "report_heat_map.csv").read_text().count("\n") == 5
    assert "accuracy against uploaded and downloaded bytes" in (here / "out" / "report.html").read_text()


def test_a_sweep_that_was_stopped_goes_on_to_the_same_bits(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []

    def stop_once(folder: Path, checkpoint: simulation.Checkpoint) -> None:
        save_checkpoint(folder, checkpoint)
        if len(stopped) < 2:
            stopped.append(folder)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the thread that listens

    command = ["sweep", "--seeds", "0", "1", "--", *TINY, "--checkpoint_every_rounds", "1"]
    assert main([*command[:1], "--out", "whole", *command[1:]]) == 0
    monkeypatch.setattr(simulation, "save_checkpoint", stop_once)
    assert main([*command[:1], "--out", "cut", *command[1:]]) == 85
    assert not (here / "cut" / "s1").exists()
    assert main([*command[:1], "--out", "cut", *command[1:]]) == 85
    assert main([*command[:1], "--out", "cut", *command[1:]]) == 0
    for name in ("s0", "s1"):
        whole, cut = ((here / out / name / "ledger.csv").read_bytes() for out in ("whole", "cut"))
        assert whole == cut


def test_a_run_that_fails_stops_no_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("--", *TINY, "--on_bad_client", "fail", "--client.max_steps", "3")
    assert main(["sweep", "--out", "out", "--grid", "client.lr=1.0e+30,0.01", *keys]) == 1
    said = capsys.readouterr().out
    assert "failed: out/client.lr=1.0e+30-s0: " in said
    assert "1 of 2 runs failed" in said
    assert "left out, not finished: out/client.lr=1.0e+30-s0" in (here / "out" / "report.md").read_text()
    bad, good = table(here / "out")
    assert "client" in bad["failure"]
    assert (bad["final/accuracy"], good["failure"]) == ("", "")
    assert float(good["final/accuracy"]) >= 0


def test_failures_are_told_also_where_there_is_no_report_without_them(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A heat map over a setting of which all values but one failed; where none failed, it is a mistake of its file."""
    good, bad = planned(grid={"method.lora_rank": [1, 2]})
    write_run(good.folder, "LoRA", [0.1, 0.5], config="method: {lora_rank: 1, upload_density: 0.5}\n")
    summary = json.loads((good.folder / "summary.json").read_text())
    totals = {"best": {}, "upload_bytes": 1, "download_bytes": 1, "seconds": 1}
    (good.folder / "summary.json").write_text(json.dumps({**summary, **totals}))
    options = {"heat_map": ["method.lora_rank", "method.upload_density"]}
    assert conclude([Outcome(good), Outcome(bad, "no memory")], options, here / "out", Console()) == 1
    said = capsys.readouterr().out
    assert "no report: " in said
    assert f"failed: {bad.folder}: no memory\n1 of 2 runs failed" in said
    with pytest.raises(ConfigurationError):
        conclude([Outcome(good)], options, here / "out", Console())


def test_without_any_result_there_is_no_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--out", "out", "--seeds", "0", "--", *TINY, "--cohort_size", "9"]) == 1
    assert "failed: out/s0: cohort_size is 9, but there are 4 clients" in capsys.readouterr().out
    assert sorted(path.name for path in (here / "out").iterdir() if path.is_file()) == ["sweep.csv"]


def test_several_at_a_time_give_the_same_bits_and_stop_with_their_sweep(here: Path) -> None:
    """The processes notice that it was killed; a run that is under way saves first."""
    entries = {"runs": [{"name": "long", "rounds": 100_000, "evaluate_every_rounds": 100_000}, {"name": "short"}]}
    (here / "s.yaml").write_text(json.dumps(entries))
    command = [sys.executable, "-m", "launch", "sweep", "--config", "s.yaml", "--out", "out", "--jobs", "2", "--"]
    with (here / "log").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0,1"}
        sweep = subprocess.Popen([*command, *TINY], env=environment, stdout=log, stderr=log)
        while not ((here / "out/short-s0/DONE").exists() and (here / "out/long-s0/ledger.csv").exists()):
            assert sweep.poll() is None, (here / "log").read_text()
            time.sleep(0.05)
        sweep.kill()
        sweep.wait()
    while not (here / "out/long-s0/PREEMPTED").exists():
        time.sleep(0.05)
    assert main(["run", *TINY, "--run_dir", "alone"]) == 0
    assert (here / "alone/ledger.csv").read_bytes() == (here / "out/short-s0/ledger.csv").read_bytes()


def test_outcomes_are_in_the_order_of_the_runs_however_they_end() -> None:
    runs, second_ended = planned(seeds=[0, 1, 2, 3]), threading.Event()

    def call(run: PlannedRun) -> Outcome:
        if run.seed == 0:
            assert second_ended.wait(10)
        elif run.seed == 1:
            second_ended.set()
        return Outcome(run)

    with ThreadPoolExecutor(8) as pool:
        assert [outcome.run for outcome in run_with(pool, call, runs, 2)] == runs


def test_behind_a_run_that_was_stopped_none_begins() -> None:
    """Also not those that a pool would have in its queue, which it cannot be asked to drop."""
    begun, stopped = [], threading.Event()

    def call(run: PlannedRun) -> Outcome:
        begun.append(run.seed)
        if run.seed == 0:
            assert stopped.wait(10)
            time.sleep(0.1)  # ends behind the one that was stopped
            return Outcome(run)
        stopped.set()
        return Outcome(run, "stopped", "SIGTERM")

    with ThreadPoolExecutor(8) as pool, pytest.raises(RunStopped):
        run_with(pool, call, planned(seeds=[0, 1, 2, 3, 4]), 2)
    assert sorted(begun) == [0, 1]


def _gpu(gpus: "SimpleQueue[str]", seen: "SimpleQueue[str]") -> None:
    _begin(gpus)
    seen.put(os.environ["CUDA_VISIBLE_DEVICES"])


def test_processes_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7")
    assert visible_gpus() == ["3", "GPU-7"]
    fresh = multiprocessing.get_context("spawn")
    gpus, seen = fresh.SimpleQueue(), fresh.SimpleQueue()
    for name in visible_gpus():
        gpus.put(name)
    processes = [fresh.Process(target=_gpu, args=(gpus, seen)) for _ in range(2)]
    for process in processes:
        process.start()
    assert {seen.get(), seen.get()} == {"3", "GPU-7"}
    for process in processes:
        process.join()


@pytest.mark.parametrize("command", ["sweep", "search"])
def test_torchrun_does_not_start_it(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert main([command, "--seeds", "0"]) == 2
    assert f"2 workers run fedsim {command}" in capsys.readouterr().err


def test_an_array_has_a_task_for_each_run_that_is_not_finished(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bin").mkdir()
    fake(here, SBATCH.replace('"WORKERS"', '"FEDSIM_TASKS"'))
    monkeypatch.setenv("PATH", f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}")
    command = ["sweep", "--out", "out", "--grid", "method.lora_rank=1,2,4"]
    slurm = ["--slurm", "--jobs", "2", "--time", "1:00:00"]
    assert main([*command, "--grid", "method.lora_rank=2", "--", *TINY]) == 0
    assert main([*command, *slurm, "--dry_run", "--", *TINY]) == 0
    assert not (here / "asked.json").exists()
    assert not (here / "out" / ".array").exists()
    capsys.readouterr()
    assert main([*command, *slurm, "--", *TINY]) == 0
    assert capsys.readouterr().out.startswith("job 4711: 2 runs below out\n")
    arguments, variables, _ = asked(here)
    assert {"--array=0-1%2", "--time=1:00:00"} <= {*arguments}
    files = sorted(Path(variables["FEDSIM_TASKS"]).iterdir())
    assert [path.name for path in files] == ["0", "1"]
    ends = ["--run_dir=out/lora_rank=1-s0", "--run_dir=out/lora_rank=4-s0"]
    for path, end in zip(files, ends, strict=True):
        lines = path.read_text().splitlines()
        assert lines[-2:] == [end, "--resume=auto"]
        assert main(["run", *lines]) == 0
    assert main([*command, "--slurm", "--", *TINY]) == 0
    assert "all runs are finished" in capsys.readouterr().out


def test_seeds_and_keys_are_checked_where_a_sweep_is_made() -> None:
    with pytest.raises(ConfigurationError, match="seeds is"):
        Sweep(seeds=[True])
