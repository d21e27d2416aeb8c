"""A user's own LightningModule, by class path, from the command line to metrics.csv and an adapter."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.__main__ import main

MODULE = """
import lightning
from torch.nn import functional


class Mine(lightning.LightningModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def training_step(self, batch, batch_idx):
        logits = self.backbone(pixel_values=batch["pixel_values"]).logits
        right = (logits.argmax(-1) == batch["labels"]).float().mean()
        self.log("accuracy", right, prog_bar=True)
        return functional.cross_entropy(logits, batch["labels"])


class Fails(Mine):
    steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        if self.steps == 40:
            raise RuntimeError("out of paper")
        return super().training_step(batch, batch_idx)
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "user_module_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("user_module_of_a_test", None)


def run(folder: Path, *options: str) -> list[dict[str, str]]:
    common = ["--rounds", "4", "--cohort_size", "4", "--evaluate_every_rounds", "2", "--server.lr", "0.02"]
    assert main(["run", *common, *options, "--run_dir", str(folder)]) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_users_module_runs_end_to_end(tmp_path: Path) -> None:
    """What it logs stands under train/, apart from the evaluation's own accuracy; it trains as ours does."""
    mine = run(tmp_path / "mine", "--client.module", "user_module_of_a_test.Mine")
    ours = run(tmp_path / "ours")
    assert mine[0]["train/accuracy"] == ""
    assert all(0 < float(row["train/accuracy"]) <= 1 for row in mine[1:])
    assert "train/loss" not in mine[0]
    assert "train/loss" in ours[0]
    for left, right in zip(mine, ours, strict=True):
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=1e-4)
        assert left["upload_value_bytes"] == right["upload_value_bytes"]
    assert float(mine[-1]["loss"]) < float(mine[0]["loss"])
    adapters = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("mine", "ours")]
    assert adapters[0].keys() == adapters[1].keys()


def test_packing_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "mine", "--client.module", "user_module_of_a_test.Mine", "--client.pack", "4")
    note = "client.pack 4 falls back to one client after another: Mine is no ClientModule: it gives no example_losses"
    assert note in capsys.readouterr().out.splitlines()


def test_what_goes_wrong_inside_says_where(tmp_path: Path) -> None:
    """Worker, round, stage and client, in notes under the traceback."""
    options = ["--cohort_size", "4", "--client.module", "user_module_of_a_test.Fails"]
    with pytest.raises(RuntimeError, match="out of paper") as raised:
        main(["run", *options, "--run_dir", str(tmp_path / "run")])
    client, stage, where = raised.value.__notes__
    with (tmp_path / "run" / "ledger.csv").open(newline="") as file:
        rounds = [int(row["round"]) for row in csv.DictReader(file)]
    assert client.removeprefix("client ").isdigit()
    assert stage == "local work"
    assert where == f"worker 0, round {max(rounds, default=0) + 1}"
