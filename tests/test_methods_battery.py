"""What every method must hold, whatever its rule; `tests/test_workers.py` adds equal bits on several workers."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import launch.experiment
from fedsim import codec, simulation
from fedsim.server import initial_state
from fedsim.simulation import Result
from launch.__main__ import main
from launch.build import Built, build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests.battery import BATTERY, COMMON

METHODS = sorted(BATTERY)

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


def built(method: str, *options: str) -> tuple[Built, simulation.Workers]:
    settings = read_settings([*COMMON, *BATTERY[method], *options])
    fabric, workers = start_workers("cpu", settings.precision, 1)
    return build(settings, fabric), workers


@pytest.mark.parametrize("method", METHODS)
def test_one_round_changes_what_trains_and_nothing_else(method: str) -> None:
    """The frozen backbone keeps every bit, and P moves."""
    made, workers = built(method)
    frozen = {name: p.detach().clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    state = initial_state(made.experiment.parameters, made.experiment.server)
    before = state.vector.detach().clone()
    simulation.run_round(made.experiment, state, 1, workers, None)
    assert not torch.equal(state.vector, before)
    assert all(torch.equal(p, frozen[name]) for name, p in made.model.named_parameters() if name in frozen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-12)])
def test_both_trainers_agree(method: str, precision: str, tolerance: float) -> None:
    """Norm of the difference over norm of the update, per client, one after another against packed."""
    options = ("--precision", precision, "--client.batch_size", "2", "--client.local_epochs", "2")
    jobs: dict[str, list] = {}
    updates: dict[str, dict[int, torch.Tensor]] = {}
    for pack in ("1", "3"):
        made, workers = built(method, *options, "--client.pack", pack)
        assert made.pack == int(pack), made.notes
        train = made.experiment.trainer.train

        def spy(given: list, pack: str = pack, train: object = train) -> object:
            jobs[pack] = given
            done = list(train(given))  # type: ignore[operator]
            updates[pack] = {t.job.client: t.job.reference - t.vector for t in done}
            return iter(done)

        made.experiment.trainer.train = spy  # type: ignore[method-assign]
        state = initial_state(made.experiment.parameters, made.experiment.server)
        simulation.run_round(made.experiment, state, 1, workers, None)
    assert len({len(job.batches) for job in jobs["1"]}) > 1, "clients of equal length would prove less"
    for client, update in updates["1"].items():
        assert (update - updates["3"][client]).norm() <= tolerance * update.norm()


@pytest.mark.parametrize("method", METHODS)
def test_the_ledger_holds_the_lengths_of_what_was_encoded(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every entry is the length of a payload that the codec made, and the sums are those of summary.json."""
    made: list[bytes] = []
    original = codec.encode

    def spy(*args: object, **kwargs: object) -> bytes:
        made.append(original(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(simulation, "encode", spy)
    assert main(["run", *COMMON, *BATTERY[method], "--run_dir", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "ledger.csv").open() as file:
        ledger = list(csv.DictReader(file))
    uploads = [int(row["upload_bytes"]) for row in ledger if row["upload_bytes"] != "0"]
    downloads = {row["round"]: int(row["download_bytes"]) for row in ledger if row["download_bytes"] != "0"}
    assert sorted(map(len, made)) == sorted([*uploads, *downloads.values()])  # one plan, so one download a round
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for total, column, factor in (
        ("upload_bytes", "upload_bytes", 1),
        ("download_bytes", "download_bytes", 1),
        ("upload_value_bytes", "upload_values", 4),
        ("download_value_bytes", "download_values", 4),
    ):
        assert summary[total] == factor * sum(int(row[column]) for row in ledger) > 0


def test_flasc_pays_exactly_four_bytes_for_each_of_k_values(tmp_path: Path) -> None:
    """Also at densities where the smallest coding writes every entry, zeros included."""
    for density in ("0.0625", "0.25", "0.99"):
        run = tmp_path / density
        options = ["--method.upload_density", density, "--rounds", "1", "--run_dir", str(run)]
        assert main(["run", *options]) == 0
        parameters = json.loads((run / "summary.json").read_text())["trainable_parameters"]
        with (run / "ledger.csv").open() as file:
            values = {int(row["upload_values"]) for row in csv.DictReader(file)} - {0}
        assert values == {max(1, int(float(density) * parameters))}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    """In one process; `test_workers.py` kills real ones. Rounds may grow: four rounds and two more are six."""
    options = [*COMMON, *BATTERY[method]]
    assert main(["run", *options, "--run_dir", str(tmp_path / "whole")]) == 0
    assert main(["run", *options, "--rounds", "4", "--run_dir", str(tmp_path / "parts")]) == 0
    assert main(["run", *options, "--run_dir", str(tmp_path / "parts"), "--resume", "auto"]) == 0
    for name, but in (("metrics.csv", "seconds"), ("ledger.csv", "")):
        tables = [
            [{k: v for k, v in row.items() if k != but} for row in csv.DictReader((tmp_path / part / name).open())]
            for part in ("whole", "parts")
        ]
        assert tables[0] == tables[1]
    adapters = [load_file(tmp_path / part / "adapter" / "adapter_model.safetensors") for part in ("whole", "parts")]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_exports_load_in_peft_without_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PeftModel, in a process that never imports the project, gives the last evaluation's logits on every test row."""
    results: list[Result] = []
    original = simulation.simulate

    def keep(*args: object) -> Result:
        results.append(original(*args))  # type: ignore[arg-type]
        return results[-1]

    monkeypatch.setattr(launch.experiment, "simulate", keep)
    lines = []
    for method in METHODS:
        settings = read_settings([*COMMON, *BATTERY[method], "--run_dir", str(tmp_path / method)])
        data = settings.data.load()
        launch.experiment.run(settings, Console(quiet=True))
        logits = results[-1].evaluation.outputs["logits"]
        assert len(logits) == len(data.test["labels"]) == 360
        inputs = str(tmp_path / f"{method}.safetensors")
        save_file({"pixel_values": data.test["pixel_values"].contiguous(), "logits": logits}, inputs)
        line = (settings.backbone_path, str(tmp_path / method / "adapter"), inputs, logits.shape[1])
        lines.append(json.dumps(line) + "\n")
    options = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path}
    outside = subprocess.run([sys.executable, "-c", OUTSIDE], input="".join(lines), **options)
    differences = [float(word) for word in outside.stdout.split()]
    assert len(differences) == len(METHODS)
    assert all(difference <= 1e-5 for difference in differences), dict(zip(METHODS, differences, strict=True))
