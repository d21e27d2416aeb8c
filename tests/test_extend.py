"""What docs/extend.md shows works as it is written: its three blocks of code, and its two commands."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from data_partitions.partition import Partition
from fedsim.client import SequentialTrainer, Trained
from launch.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
CLASS_PATHS = {"--method": "MyMethod", "--data": "MyData", "--client.module": "MyModule"}


def given(command: list[str], key: str) -> str:
    """The value of a key in a command."""
    return command[command.index(key) + 1]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@dataclass
class Run:
    """The page's first command, done.

    Attributes:
        here: the directory with my_extension.py, where it ran.
        folder: the run directory.
        trained: every client's work, in order.
        extension: the page's code, as the run imported it.
    """

    here: Path
    folder: Path
    trained: list[Trained]
    extension: ModuleType


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    here, trained = tmp_path_factory.mktemp("extend"), []
    (here / "my_extension.py").write_text("\n\n".join(BLOCKS), encoding="utf-8")
    train = SequentialTrainer.train

    def spy(self: SequentialTrainer, jobs: list) -> Iterator[Trained]:
        for done in train(self, jobs):
            trained.append(done)
            yield done

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(sys, "path", [folder for folder in sys.path if folder])  # the run finds the directory by itself
        patch.setattr(SequentialTrainer, "train", spy)
        assert main(COMMANDS[0][1:]) == 0
        yield Run(here, here / given(COMMANDS[0], "--run_dir"), trained, sys.modules["my_extension"])
    sys.modules.pop("my_extension")


def test_the_page_has_38_lines_of_code_and_two_commands() -> None:
    """The number that the page and the README say, of at most 40; blank lines are not counted."""
    lines = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert re.findall(r"(\d+) lines", PAGE) == [str(len(lines))] * 2
    (told,) = re.findall(r"docs/extend\.md\).* (\d+) lines", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert int(told) == len(lines)
    assert [command[0] for command in COMMANDS] == ["fedsim", "torchrun"]
    assert {key: given(COMMANDS[0], key) for key in CLASS_PATHS} == {
        key: f"my_extension.{name}" for key, name in CLASS_PATHS.items()
    }


def test_the_run_learns_and_names_what_it_used(run: Run) -> None:
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["method"]["class_path"] == "my_extension.MyMethod"
    assert config["method"]["init_args"]["threshold"] == float(given(COMMANDS[0], "--method.threshold"))
    assert config["data"] == {
        "class_path": "my_extension.MyData",
        "init_args": {"per_writer": int(given(COMMANDS[0], "--data.per_writer"))},
    }
    assert config["client"]["module"] == "my_extension.MyModule"
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["method"] == "MyMethod"
    assert summary["rounds"] == int(given(COMMANDS[0], "--rounds"))
    rows = table(run.folder / "metrics.csv")
    assert float(rows[0]["accuracy"]) < 0.3
    assert summary["final"]["accuracy"] == pytest.approx(0.6, abs=0.1)  # the page says about 0.6
    assert summary["upload_bytes"] / 1e6 == pytest.approx(0.5, abs=0.15)  # and about 0.5 MB
    assert summary["download_bytes"] / 1e6 == pytest.approx(5.2, abs=0.05)  # and 5.2 MB for every entry
    assert (run.folder / "adapter" / "adapter_config.json").exists()


def test_the_module_trains_on_smoothed_labels_and_logs(run: Run) -> None:
    """By hand for two rows; in the run, what it logs is a column, in place of our module's loss."""
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.5, 3.0, -1.0]])
    module = run.extension.MyModule(lambda pixel_values: SimpleNamespace(logits=logits))
    logged: dict[str, torch.Tensor] = {}
    module.log = logged.__setitem__
    loss = module.training_step({"pixel_values": torch.zeros(2), "labels": torch.tensor([0, 2])}, 0)
    surprise = -np.log(np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True))
    assert float(loss) == pytest.approx(np.mean(0.9 * surprise[[0, 1], [0, 2]] + 0.1 * surprise.mean(1)), rel=1e-5)
    assert {name: float(value) for name, value in logged.items()} == {"accuracy": 0.5}
    rows = table(run.folder / "metrics.csv")
    assert rows[0]["train/accuracy"] == ""
    assert 0.1 < float(rows[1]["train/accuracy"]) < float(rows[-1]["train/accuracy"]) <= 1
    assert "train/loss" not in rows[0]


def test_the_data_set_turns_the_page_writer_by_writer(run: Run) -> None:
    """Turned back, every row is scikit-learn's; every client of the run holds the rows of one writer."""
    each = int(given(COMMANDS[0], "--data.per_writer"))
    data = run.extension.MyData(each).load()
    images, labels = load_digits(return_X_y=True)
    pixels = torch.cat([data.train["pixel_values"], data.test["pixel_values"]]).numpy()
    assert pixels.shape == (1797, 1, 8, 8)
    for row, image in enumerate(pixels[:, 0]):
        upright = np.rot90(image, -(row // each % 4))
        np.testing.assert_allclose(upright * 6.0 + 4.9, images[row].reshape(8, 8), atol=1e-5)
    assert torch.cat([data.train["labels"], data.test["labels"]]).tolist() == labels.tolist()
    partition = Partition.load(run.folder / "partition.npz")
    assert partition.clients == 1500 // each
    for client in range(partition.clients):
        assert partition.of(client).tolist() == list(range(each * client, each * (client + 1)))


def test_the_method_sends_what_is_larger_than_its_threshold(run: Run) -> None:
    """By hand for five entries; in the run, the ledger counts them for every client, and they differ."""
    method = run.extension.MyMethod(threshold=0.5)
    job = SimpleNamespace(reference=torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0]))
    sent = method.upload(job, torch.tensor([1.25, 0.25, 0.5, 1.75, 1.0])).update
    assert sent.indices.tolist() == [1, 3]
    assert sent.values.tolist() == [0.75, -0.75]
    threshold = float(given(COMMANDS[0], "--method.threshold"))
    larger = [
        (done.job.client, int(((done.job.reference - done.vector).abs() > threshold).sum())) for done in run.trained
    ]
    ledger = table(run.folder / "ledger.csv")
    assert [(int(row["client"]), int(row["upload_values"])) for row in ledger] == larger
    assert len(ledger) == int(given(COMMANDS[0], "--rounds")) * int(given(COMMANDS[0], "--cohort_size"))
    assert len({row["upload_values"] for row in ledger}) > len(ledger) // 2
    assert all(int(row["upload_bytes"]) < int(row["download_bytes"]) for row in ledger)


def test_two_workers_repeat_the_run_to_the_bit(run: Run) -> None:
    """The second command, for real; --standalone finds a free port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, *COMMANDS[1][1:]]
    subprocess.run(command, check=True, timeout=180, cwd=run.here, env=environment, capture_output=True)
    again = run.here / given(COMMANDS[1], "--run_dir")
    adapters = [folder / "adapter" / "adapter_model.safetensors" for folder in (run.folder, again)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    ledgers = [table(folder / "ledger.csv") for folder in (run.folder, again)]
    assert {row.pop("worker") for row in ledgers[0]} == {"0"}
    assert {row.pop("worker") for row in ledgers[1]} == {"0", "1"}
    assert ledgers[0] == ledgers[1]
