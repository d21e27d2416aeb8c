"""A run that stopped anywhere goes on to the bits of a run that never stopped, or is refused and left as it was."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import launch.experiment
from data_partitions.partition import Partition
from fedsim import reporting, simulation
from fedsim.checkpoint import newest_checkpoint, save_checkpoint
from launch.__main__ import main

TINY = ("--rounds", "6", "--cohort_size", "3", "--evaluate_every_rounds", "3", "--checkpoint_every_rounds", "2")


def run(folder: Path, *options: str) -> int:
    return main(["run", *TINY, *options, "--run_dir", str(folder)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def bits(folder: Path) -> tuple[list[dict[str, str]], bytes, bytes]:
    """All that must be the same: metrics but for seconds, the ledger, the adapter."""
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return rows(folder / "metrics.csv"), (folder / "ledger.csv").read_bytes(), adapter


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point of every curve as TensorBoard reads it."""
    found = {}
    for part in (folder, folder / "by_upload_bytes"):
        events = EventAccumulator(str(part))
        events.Reload()
        found |= {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found


def age(folder: Path) -> None:
    """Makes the event files old: TensorBoard orders them by the second, and a test resumes within the same one."""
    for path in folder.rglob("events.out.tfevents.*"):
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0", 1)))


def require_same(folder: Path, whole: Path) -> None:
    """The bits of the whole run, its summary but for time and memory, and each point of its curves once."""
    assert bits(folder) == bits(whole)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, whole)]
    for summary in summaries:
        for name in ("seconds", "clients_per_second", "server_seconds", "peak_memory_bytes"):
            del summary[name]
    assert summaries[0] == summaries[1]
    found = points(folder)
    assert found == points(whole)
    assert all(len({step for step, _ in curve}) == len(curve) for curve in found.values())


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a run directory but its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rounds without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def four_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four rounds, which more rounds would go on with."""
    folder = tmp_path_factory.mktemp("four") / "run"
    assert run(folder, "--rounds", "4") == 0
    age(folder)
    return folder


@pytest.fixture
def finished(four_rounds: Path, tmp_path: Path) -> Path:
    shutil.copytree(four_rounds, tmp_path / "run")
    return tmp_path / "run"


Fault = Callable[[pytest.MonkeyPatch], None]


def at_checkpoint(round: int, saved: bool) -> Fault:
    """Stops where the checkpoint of a round is written, before or after."""

    def inject(patch: pytest.MonkeyPatch) -> None:
        def save(folder: Path, checkpoint: Any) -> None:
            if checkpoint.round == round and not saved:
                raise KeyboardInterrupt
            save_checkpoint(folder, checkpoint)
            if checkpoint.round == round:
                raise KeyboardInterrupt

        patch.setattr(simulation, "save_checkpoint", save)

    return inject


def in_export(patch: pytest.MonkeyPatch) -> None:
    """Stops with half an adapter written."""

    def export(model: object, folder: Path, backbone: str) -> None:
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    patch.setattr(launch.experiment, "export_adapter", export)


def before_the_summary(patch: pytest.MonkeyPatch) -> None:
    """Stops with everything written but what marks the run as finished."""
    write = reporting.write_atomically

    def stop(path: Path, text: str) -> None:
        if path.name == "summary.json":
            raise KeyboardInterrupt
        write(path, text)

    patch.setattr(reporting, "write_atomically", stop)


@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        (at_checkpoint(2, saved=False), 0),
        (at_checkpoint(4, saved=True), 4),
        (at_checkpoint(6, saved=True), 6),
        (in_export, 6),
        (before_the_summary, 6),
    ],
    ids=["before the first checkpoint", "behind a checkpoint", "behind the last checkpoint", "in export", "in finish"],
)
def test_a_run_stopped_anywhere_goes_on_to_the_bits_of_a_whole_one(
    fault: Fault,
    kept: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        fault(patch)
        assert run(folder) == 130
    assert capsys.readouterr().err == "fedsim: interrupted\n"
    assert not (folder / "summary.json").exists()
    found, _ = newest_checkpoint(folder / "checkpoint")
    assert (found.round if found else 0) == kept
    age(folder)
    assert run(folder, "--resume", "auto") == 0
    require_same(folder, whole)


def damage(folder: Path) -> None:
    for path in folder.glob("checkpoint/round-*/state.json"):
        path.write_text("{")


def forget(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoint")


@pytest.mark.parametrize("lose", [forget, damage])
def test_an_unfinished_run_without_a_checkpoint_starts_anew(
    lose: Callable[[Path], None],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Evaluations of rounds 0 and 3 were drawn before: each point stands once afterwards, in both curves."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_checkpoint(4, saved=True)(patch)
        assert run(folder) == 130
    age(folder)
    assert [step for step, _ in points(folder)["eval/accuracy"]] == [0, 3]
    lose(folder)
    capsys.readouterr()
    assert run(folder, "--resume", "auto") == 0
    said = capsys.readouterr().out.splitlines()
    assert f"run_dir {folder} holds no checkpoint yet; the run starts anew" in said
    assert sum("is damaged" in line for line in said) == (2 if lose is damage else 0)
    require_same(folder, whole)


def test_more_rounds_go_on_to_the_bits_of_a_whole_run(finished: Path, whole: Path) -> None:
    """What the refusals below do not reach: the same command on the run as it was."""
    assert run(finished, "--resume", "auto") == 0
    assert bits(finished) == bits(whole)


def other_partition(folder: Path) -> None:
    """The same clients, with one example dealt to another."""
    held = Partition.load(folder / "partition.npz")
    offsets = held.offsets.copy()
    offsets[1:-1] += 1
    Partition(offsets, held.indices, held.arguments).save(folder / "partition.npz")


def no_partition(folder: Path) -> None:
    (folder / "partition.npz").unlink()


def short_ledger(folder: Path) -> None:
    path = folder / "ledger.csv"
    path.write_bytes(path.read_bytes()[:-10])


def no_ledger(folder: Path) -> None:
    (folder / "ledger.csv").unlink()


def another_length(folder: Path) -> None:
    """As a checkpoint is that another backbone made, under the same path."""
    found, _ = newest_checkpoint(folder / "checkpoint")
    assert found is not None
    shutil.rmtree(folder / "checkpoint")
    save_checkpoint(
        folder / "checkpoint", replace(found, tensors={**found.tensors, "vector": found.tensors["vector"][:-1]})
    )


def no_moments(folder: Path) -> None:
    """As nobody leaves it, but under a checksum that fits."""
    found, _ = newest_checkpoint(folder / "checkpoint")
    assert found is not None
    shutil.rmtree(folder / "checkpoint")
    kept = {name: value for name, value in found.tensors.items() if name != "optimizer.exp_avg"}
    save_checkpoint(folder / "checkpoint", replace(found, tensors=kept))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_partition, "partition.npz is not what data and settings give; were the data changed?"),
        (no_partition, "partition.npz is no partition"),
        (short_ledger, "ledger.csv is shorter than the"),
        (no_ledger, "ledger.csv is shorter than the"),
        (another_length, "trainable values, these settings have"),
        (no_moments, "is not of this run (its state of the optimiser adam is not of these settings)"),
        (forget, "holds a finished run without a checkpoint; choose another run_dir"),
        (damage, "holds a finished run without a checkpoint; choose another run_dir"),
    ],
)
def test_a_refused_resume_is_one_line_and_changes_nothing(
    change: Callable[[Path], None], says: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Least of all the summary, which makes a run a finished one; and nobody holds the lock afterwards."""
    change(finished)
    before = contents(finished)
    assert {"summary.json", "config.yaml", "metrics.csv"} < before.keys()
    for _ in range(2):
        capsys.readouterr()
        assert run(finished, "--resume", "auto") == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("fedsim: ")
        assert says in err
        assert contents(finished) == before


def test_the_lengths_are_said(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = json.loads((finished / "summary.json").read_text())["trainable_parameters"]
    another_length(finished)
    capsys.readouterr()
    assert run(finished, "--resume", "auto") == 2
    assert f"it holds {held - 1} trainable values, these settings have {held}" in capsys.readouterr().err
