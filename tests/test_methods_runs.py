"""Whole runs of every method: what they pay, that they go on after a stop, that any number of workers gives the same
bits, that the collectives carry the bytes of the ledger, and that the outcome loads in PEFT."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import launch.experiment
from fedsim import simulation
from fedsim.checkpoint import Checkpoint, save_checkpoint
from fedsim.codec import decode_message, values_in
from fedsim.simulation import Result
from launch.__main__ import main
from launch.configuration import read_settings
from launch.drills import workers as several
from launch.drills.outcome import bits, table
from launch.registry import choices
from tests.battery import BATTERY, VARIANTS, entries, run_all

METHODS = sorted(BATTERY)
KEEPING = ("tiers", "error feedback", "pruned ranks")
"""Variants whose clients keep something at home, or have plans of their own."""

ENTRIES = (*METHODS, *KEEPING)

MAGIC = b"FSV1"
ALONE = "Centralised"
"""The one entry with one client a round, and so with one worker that trains."""

EVERYTHING = (*BATTERY, *VARIANTS)


class Together(NamedTuple):
    """Entries that ran on several workers."""

    workers: int
    names: Sequence[str]
    folder: Path


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
        options: of the run.
        killed: what it would have left behind, had it been killed behind its fourth round.
        uploads: the length of each client's message, round by round in cohort order.
        downloads: the lengths of each round's messages.
    """

    options: Sequence[str]
    folder: Path
    killed: Path
    result: Result
    uploads: list[int]
    downloads: list[list[int]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """One whole run of every entry, on one worker, in this process."""
    folder, patch = tmp_path_factory.mktemp("finished"), pytest.MonkeyPatch()
    return {name: _run(options, folder / name, patch) for name, options in entries(folder).items()}


def _run(options: Sequence[str], folder: Path, patch: pytest.MonkeyPatch) -> Finished:
    found = Finished(options, folder, folder.with_name(f"{folder.name}, killed"), None, [], [])  # type: ignore[arg-type]
    simulate, send_down, arrived, save = ORIGINALS

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

    def save_and_copy(into: Path, checkpoint: Checkpoint) -> None:
        save(into, checkpoint)
        if checkpoint.round == 4:
            shutil.copytree(folder, found.killed)

    patch.setattr(launch.experiment, "simulate", keep)
    patch.setattr(simulation, "save_checkpoint", save_and_copy)
    patch.setattr(simulation, "_send_down", spy_down)
    patch.setattr(simulation, "_arrived", spy_up)
    launch.experiment.run(read_settings([*options, "--run_dir", str(folder)]), Console(quiet=True))
    patch.undo()
    return found


ORIGINALS = (simulation.simulate, simulation._send_down, simulation._arrived, save_checkpoint)


@pytest.fixture(scope="module", params=[(2, EVERYTHING), (3, (*VARIANTS, "FedSALoRA")), (4, ("FLASC", "FedExLoRA"))])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Entries on several workers, started once for all of them."""
    workers, names = request.param
    folder = tmp_path_factory.mktemp(f"workers{workers}")
    entries(folder)  # saved here, and not by one of the workers while another reads
    launcher = several.launch(workers, run_all, folder, names, said=folder / "said")
    assert several.wait(launcher, 240) == 0, (folder / "said").read_text()
    return Together(workers, names, folder)


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
def test_resumed_equals_uninterrupted(method: str, finished: dict[str, Finished]) -> None:
    """In one process, from what lay on the disk behind the fourth round; `test_workers.py` kills real ones."""
    run = finished[method]
    assert main(["run", *run.options, "--run_dir", str(run.killed), "--resume", "auto"]) == 0
    assert bits(run.killed) == bits(run.folder)


def test_rounds_may_grow(tmp_path: Path, finished: dict[str, Finished]) -> None:
    """Four rounds and two more are six."""
    options = [*finished["FedSALoRA"].options, "--run_dir", str(tmp_path / "parts"), "--resume", "auto"]
    assert main(["run", *options, "--rounds", "4"]) == 0
    assert main(["run", *options]) == 0
    assert bits(tmp_path / "parts") == bits(finished["FedSALoRA"].folder)


def test_the_battery_covers_every_method() -> None:
    assert set(BATTERY) == {choice.name for choice in choices("methods")}


def test_any_number_of_workers_gives_the_same_bits(finished: dict[str, Finished], together: Together) -> None:
    workers, names, folder = together
    for name in names:
        assert bits(folder / name) == bits(finished[name].folder), f"{name} on {workers} workers"
        ledger = table(folder / name / "ledger.csv")
        assert {row["worker"] for row in ledger} <= {str(w) for w in range(workers)}
    assert all(len({row["worker"] for row in table(folder / n / "ledger.csv")}) > 1 for n in names if n != ALONE)


def test_collectives_carry_the_bytes_of_the_ledger(together: Together) -> None:
    """Every client's encoded upload is found, whole and once, in what its worker put into the all-gather, with nothing
    but padding behind it; every client's download in what the server worker broadcast."""
    workers, names, folder = together
    for name in names:
        carried = [torch.load(folder / f"{name}-carried-{w}.pt", weights_only=True) for w in range(workers)]
        ledger = table(folder / name / "ledger.csv")
        gathers = [[bytes(b.tolist()) for kind, b in own if kind != "broadcast"] for own in carried]
        broadcasts = [bytes(b.tolist()) for kind, b in carried[0] if kind == "broadcast"]
        downloads = iter([b for b in broadcasts if b.startswith(MAGIC)])
        uploads = [iter(own) for own in gathers]
        for number in range(1, 7):
            of_round = [row for row in ledger if row["round"] == str(number)]
            if any(int(row["upload_bytes"]) for row in of_round):
                for w in range(workers):
                    next(uploads[w])  # what the clients keep and log
                    _take_uploads(next(uploads[w]), [row for row in of_round if row["worker"] == str(w)])
            sizes = {int(row["download_bytes"]) for row in of_round} - {0}
            if sizes:
                assert sizes <= runs_of_payloads(next(downloads)), f"{name}, round {number}"


def runs_of_payloads(buffer: bytes) -> set[int]:
    """The lengths of all messages that neighbouring payloads of a buffer could make up."""
    ends = [0]
    while ends[-1] < len(buffer):
        size = next(n for n in range(ends[-1] + 1, len(buffer) + 1) if n == len(buffer) or buffer[n : n + 4] == MAGIC)
        ends.append(size)
    return {stop - start for start in ends for stop in ends if stop > start}


def _take_uploads(buffer: bytes, entries: Sequence[dict[str, str]]) -> None:
    """Decodes a worker's messages off its buffer in cohort order; the rest must be padding."""
    start = 0
    for entry in entries:
        size = int(entry["upload_bytes"])
        if size:
            message = buffer[start : start + size]
            _, examples = decode_message(message)
            assert (values_in(message), examples) == (int(entry["upload_values"]), int(entry["examples"]))
        start += size
    assert not any(buffer[start:])


def test_exports_load_in_peft_without_the_project(tmp_path: Path, finished: dict[str, Finished]) -> None:
    """PeftModel, in a process that never imports the project, gives the last evaluation's logits on every test row."""
    lines = []
    for method in METHODS:
        run, settings = finished[method], read_settings([*finished[method].options])
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
