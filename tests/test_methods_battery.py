"""What every method must hold, whatever its rule; `tests/test_workers.py` adds equal bits on several workers."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

import launch.experiment
from fedsim import simulation
from fedsim.briefing import Briefing
from fedsim.client import Trained
from fedsim.method import ClientJob, ServerState
from fedsim.server import enter_stage, initial_state
from fedsim.simulation import Result
from fedsim.transport import Workers
from launch.__main__ import main
from launch.build import Built, build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests.battery import BATTERY, COMMON, NOT_PACKED, VARIANTS

METHODS = sorted(BATTERY)
KEEPING = ("tiers", "error feedback", "pruned ranks")
"""Variants whose clients keep something at home, or have plans of their own."""

ENTRIES = (*METHODS, *KEEPING)

OUTSIDE = """
import json, sys, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

for line in sys.stdin:
    backbone, adapter, inputs, labels = json.loads(line)
    options = {"num_labels": labels, "ignore_mismatched_sizes": True}
    base = AutoModelForImageClassification.from_pretrained(backbone, **options)
    model = PeftModel.from_pretrained(base, adapter).eval()
    held = load_file(inputs)
    with torch.no_grad():
        print(float((model(pixel_values=held["pixel_values"]).logits - held["logits"]).abs().max()))
assert not {"fedsim", "methods", "launch", "data_partitions"} & set(sys.modules)
"""


@dataclass
class Finished:
    """A run of a method, in this process, and what its transport was given.

    Attributes:
        uploads: the length of each client's message, round by round in cohort order.
        downloads: the lengths of each round's messages.
    """

    folder: Path
    result: Result
    uploads: list[int]
    downloads: list[list[int]]


def options_of(entry: str) -> list[str]:
    return [*COMMON, *(VARIANTS[entry] if entry in VARIANTS else ("--method", entry, *BATTERY[entry]))]


def built(method: str, *options: str) -> tuple[Built, Workers]:
    settings = read_settings([*options_of(method), *options])
    fabric, workers = start_workers("cpu", settings.precision, 1)
    return build(settings, fabric, workers), workers


def started(made: Built) -> ServerState:
    """The server before the first round, in the first round's stage."""
    made.experiment.parameters.activate(made.experiment.method.segments(1))
    return initial_state(made.experiment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Finished]]:
    """One whole run of every entry."""
    folder = tmp_path_factory.mktemp("finished")
    patch = pytest.MonkeyPatch()
    runs = {entry: _run(entry, folder / entry, patch) for entry in ENTRIES}
    yield runs
    patch.undo()


def _run(method: str, folder: Path, patch: pytest.MonkeyPatch) -> Finished:
    found = Finished(folder, None, [], [])  # type: ignore[arg-type]
    simulate, send_down, arrived = ORIGINALS

    def keep(*args: object) -> Result:
        found.result = simulate(*args)  # type: ignore[arg-type]
        return found.result

    def spy_down(*args: object) -> object:
        messages = send_down(*args)  # type: ignore[arg-type]
        found.downloads.append([len(message) for message in messages.values()])
        return messages

    def spy_up(*args: object) -> object:
        found.uploads.append(len(args[5]))  # type: ignore[arg-type]
        return arrived(*args)  # type: ignore[arg-type]

    patch.setattr(launch.experiment, "simulate", keep)
    patch.setattr(simulation, "_send_down", spy_down)
    patch.setattr(simulation, "_arrived", spy_up)
    launch.experiment.run(read_settings([*options_of(method), "--run_dir", str(folder)]), Console(quiet=True))
    patch.undo()
    return found


ORIGINALS = (simulation.simulate, simulation._send_down, simulation._arrived)


def table(path: Path, but: str = "") -> list[dict[str, str]]:
    """A CSV's rows without one column."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != but} for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", METHODS)
def test_one_round_changes_what_trains_and_nothing_else(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """P moves where clients upload, or where the method drew it anew, and nowhere else; the frozen backbone keeps every
    bit, but for what the method itself changed."""
    made, workers = built(method)
    state, told = started(made), list[Briefing]()
    brief = simulation.brief

    def spy(*args: Any) -> Briefing:
        told.append(brief(*args))
        return told[-1]

    monkeypatch.setattr(simulation, "brief", spy)
    frozen = {name: p.detach().clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    before = state.vector.detach().clone()
    simulation.run_round(made.experiment, state, 1, workers, None)
    moved = (state.vector.detach() != before).nonzero().squeeze(1)
    assert (len(moved) > 0) == (method != "LocalOnly")
    hooks = made.experiment.method
    supports = [hooks.upload_support(told[0].shared, plan) for plan in told[0].plans if plan is not None]
    known = [support for support in supports if support is not None]
    if len(known) == len(supports):
        assert torch.isin(moved, torch.cat(known)).all()
    changed = made.experiment.backbone.changed
    assert bool(changed) == (method in {"FedExLoRA", "FLoRAStacking"})
    own = {name for held in state.clients.values() for name in held.tensors}
    assert own == ({"own"} if method in {"FedSALoRA", "LocalOnly"} else set())
    kept = {name: p for name, p in made.model.named_parameters() if name in frozen and name not in changed}
    assert kept
    assert all(torch.equal(p, frozen[name]) for name, p in kept.items())


@pytest.mark.parametrize("method", METHODS)
def test_both_trainers_agree(method: str) -> None:
    """Norm of the difference over norm of the update, per client, one after another against packed.

    In the second round, whose jobs have masks, penalties and parts of their own; in float64, as the two round alike
    but for the last bits.
    """
    options = ["--precision", "64-true", "--client.batch_size", "2", "--client.local_epochs", "2"]
    if method == "SLoRA":  # the stage that packs
        options += ["--method.stage_one_rounds", "1"]
    made, workers = built(method, *options)
    packed, _ = built(method, *options, "--client.pack", "3")
    assert (packed.pack == 1) == (method in NOT_PACKED), packed.notes
    state, jobs, updates = started(made), list[ClientJob](), dict[int, Tensor]()
    train = made.experiment.trainer.train

    def spy(given: list[ClientJob]) -> Iterator[Trained]:
        jobs[:] = given
        done = list(train(given))
        updates.update({t.job.client: t.job.reference - t.vector for t in done})
        return iter(done)

    made.experiment.trainer.train = spy  # type: ignore[method-assign, assignment]
    for round in (1, 2):
        state = enter_stage(made.experiment, state, round, True)
        updates.clear()
        simulation.run_round(made.experiment, state, round, workers, None)
        if round == 1:
            changed = {name: value.clone() for name, value in made.experiment.backbone.changed.items()}
    packed.experiment.backbone.write(changed)
    packed.experiment.parameters.activate(made.experiment.method.segments(2))
    assert len({len(job.batches) for job in jobs}) > 1 or len(jobs) == 1, "clients of equal length would prove less"
    for done in packed.experiment.trainer.train(jobs):
        update = updates[done.job.client]
        assert update.norm() > 0
        assert (done.job.reference - done.vector - update).norm() <= 1e-12 * update.norm()


@pytest.mark.parametrize("method", ENTRIES)
def test_the_ledger_holds_the_lengths_of_what_travels(method: str, finished: dict[str, Finished]) -> None:
    """Every entry is the length of a message, and the sums are those of summary.json."""
    run = finished[method]
    ledger = table(run.folder / "ledger.csv")
    assert [n for row in ledger if (n := int(row["upload_bytes"]))] == run.uploads
    for round, lengths in enumerate(run.downloads, start=1):
        paid = {int(row["download_bytes"]) for row in ledger if row["round"] == str(round)} - {0}
        assert paid == set(lengths) - {0}
    summary = json.loads((run.folder / "summary.json").read_text())
    for total, column, factor in (
        ("upload_bytes", "upload_bytes", 1),
        ("download_bytes", "download_bytes", 1),
        ("upload_value_bytes", "upload_values", 4),
        ("download_value_bytes", "download_values", 4),
    ):
        paid = factor * sum(int(row[column]) for row in ledger)
        assert summary[total] == paid
        assert (paid > 0) == (method != "LocalOnly")


def test_clients_come_again(finished: dict[str, Finished]) -> None:
    """Or what they keep, what they missed and what they know already would be in no other test of the battery."""
    rounds = {name: set[int]() for name in map(str, range(8))}
    for row in table(finished["LoRA"].folder / "ledger.csv"):
        rounds[row["client"]].add(int(row["round"]))
    assert sum(len(took) > 1 for took in rounds.values()) > 6
    assert any(round + 1 in took for took in rounds.values() for round in took)
    assert any(round + 1 not in took and max(took) > round for took in rounds.values() for round in took)


def test_flasc_pays_exactly_four_bytes_for_each_of_k_values(tmp_path: Path) -> None:
    """Also at densities where the smallest coding writes every entry, zeros included."""
    for density in ("0.0625", "0.25", "0.99"):
        run = tmp_path / density
        options = ["--method.upload_density", density, "--rounds", "1", "--run_dir", str(run)]
        assert main(["run", *options]) == 0
        parameters = json.loads((run / "summary.json").read_text())["trainable_parameters"]
        values = {int(row["upload_values"]) for row in table(run / "ledger.csv")} - {0}
        assert values == {max(1, int(float(density) * parameters))}


@pytest.mark.parametrize("method", ENTRIES)
def test_resumed_equals_uninterrupted(method: str, tmp_path: Path, finished: dict[str, Finished]) -> None:
    """In one process; `test_workers.py` kills real ones. Rounds may grow: four rounds and two more are six."""
    whole, parts = finished[method].folder, tmp_path / "parts"
    assert main(["run", *options_of(method), "--rounds", "4", "--run_dir", str(parts)]) == 0
    assert main(["run", *options_of(method), "--run_dir", str(parts), "--resume", "auto"]) == 0
    for name, but in (("metrics.csv", "seconds"), ("ledger.csv", "")):
        assert table(whole / name, but) == table(parts / name, but)
    written = sorted(path.relative_to(whole) for path in whole.glob("*/*.safetensors"))
    assert written
    for name in written:
        weights = [load_file(run / name) for run in (whole, parts)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_exports_load_in_peft_without_the_project(tmp_path: Path, finished: dict[str, Finished]) -> None:
    """PeftModel, in a process that never imports the project, gives the last evaluation's logits on every test row."""
    lines = []
    for method in METHODS:
        run, settings = finished[method], read_settings(options_of(method))
        images = settings.data.load().test["pixel_values"].contiguous()
        logits = run.result.evaluation.outputs["logits"]
        assert len(logits) == len(images) == 120
        inputs = str(tmp_path / f"{method}.safetensors")
        save_file({"pixel_values": images, "logits": logits}, inputs)
        backbone = run.folder / "backbone" if (run.folder / "backbone").exists() else settings.backbone_path
        lines.append(json.dumps((str(backbone), str(run.folder / "adapter"), inputs, logits.shape[1])) + "\n")
    outside = subprocess.run(
        [sys.executable, "-c", OUTSIDE], input="".join(lines), check=True, capture_output=True, text=True, cwd=tmp_path
    )
    differences = dict(zip(METHODS, map(float, outside.stdout.split()), strict=True))
    assert all(difference <= 1e-5 for difference in differences.values()), differences
