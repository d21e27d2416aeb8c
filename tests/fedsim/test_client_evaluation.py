"""Every client on examples of its own: against plain loops over clients."""

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from data_partitions.holding_out import hold_out
from data_partitions.partition import Partition
from fedsim.client_evaluation import ClientEvaluator
from fedsim.errors import ConfigurationError
from fedsim.evaluation import Evaluator
from fedsim.options import EvaluationOptions
from launch.__main__ import main
from tests import tiny

ROWS = {2: np.array([0, 1, 2]), 5: np.array([3]), 7: np.array([4, 5, 6, 7, 8]), 9: np.array([9, 10])}


def build() -> tuple[tiny.Tiny, ClientEvaluator]:
    from contextlib import nullcontext

    built = tiny.build()
    evaluator = Evaluator(built.model, built.parameters, built.module.task, built.train, 4, nullcontext)
    return built, ClientEvaluator(evaluator, ROWS, tiny.CPU)


def accuracy(built: tiny.Tiny, vector: Tensor, rows: np.ndarray) -> float:
    built.parameters.load(vector)
    built.model.eval()
    with torch.no_grad():
        logits = built.model(pixel_values=built.data.train["pixel_values"][rows]).logits
    return (logits.argmax(1) == built.data.train["labels"][rows]).double().mean().item()


def test_the_distribution_over_clients_by_hand() -> None:
    built, evaluator = build()
    found = evaluator.evaluate(built.start(), tiny.ONE_WORKER)
    alone = [accuracy(built, built.start(), rows) for rows in ROWS.values()]
    assert found["clients/accuracy"] == pytest.approx(np.mean(alone))
    assert found["clients/accuracy_worst_10"] == pytest.approx(min(alone))  # a tenth of four is at least one
    assert found["clients/accuracy_best_10"] == pytest.approx(max(alone))
    pooled = accuracy(built, built.start(), np.concatenate(list(ROWS.values())))
    assert found["held_out/accuracy"] == pytest.approx(pooled)
    assert set(found) == {"held_out/accuracy", "held_out/loss"} | {
        f"clients/accuracy{end}" for end in ("", "_worst_10", "_best_10")
    }


def test_worst_is_highest_where_less_is_better() -> None:
    built, evaluator = build()
    evaluator._metric, evaluator._higher = "loss", False
    found = evaluator.evaluate(built.start(), tiny.ONE_WORKER)
    assert found["clients/loss_worst_10"] > found["clients/loss"] > found["clients/loss_best_10"]


def test_clients_that_a_metric_says_nothing_of_are_left_out() -> None:
    _, evaluator = build()
    scores = iter([0.5, math.nan, 1.0, 0.0])

    def metrics(outputs: Mapping[str, Tensor]) -> dict[str, float]:
        return {"accuracy": next(scores), "loss": 0.0}

    evaluator._evaluator.task = SimpleNamespace(metrics=metrics)
    found = evaluator._distribution("clients", {"labels": torch.zeros(11)})
    assert list(found.values()) == [0.5, 0.0, 1.0]


@pytest.mark.parametrize(("policy", "status"), [("skip", 0), ("fail", 1)])
def test_a_client_that_diverges_when_it_trains_on_is_as_it_was_before(
    policy: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or ends the run, where bad clients do."""
    wild = ("--client.lr", "30", "--evaluation.held_out", "0.2", "--evaluation.local_epochs", "40")
    short = ("--rounds", "1", "--evaluation.clients", "2", "--on_bad_client", policy)
    assert main(["run", *wild, *short, "--run_dir", str(tmp_path / "run")]) == status
    if policy == "fail":
        assert re.search(r"the update of client \d+ in round 0: ", capsys.readouterr().err)
        return
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["personal/accuracy"] == first["clients/accuracy"]


def test_personal_vectors_are_each_client_s_own() -> None:
    built, evaluator = build()
    jobs = [replace(built.job(client, 4), position=at) for at, client in enumerate(evaluator.clients)]
    trained = list(built.sequential().train(jobs))
    assert any(not torch.equal(one.vector, trained[0].vector) for one in trained)
    vectors = ((one.job.position, one.vector) for one in reversed(trained))
    found = evaluator.evaluate_each("personal", vectors, tiny.ONE_WORKER)
    alone = [accuracy(built, one.vector, ROWS[one.job.client]) for one in trained]
    assert found["personal/accuracy"] == pytest.approx(np.mean(alone))
    assert found["personal/accuracy_worst_10"] == pytest.approx(min(alone))
    assert found["personal/accuracy_best_10"] == pytest.approx(max(alone))


@pytest.mark.parametrize(
    ("fraction", "held"), [(0.2, [0, 0, 1, 1, 2]), (0.5, [0, 0, 1, 2, 5]), (0.99, [0, 0, 1, 4, 9])]
)
def test_holding_out_keeps_everything_once(fraction: float, held: list[int]) -> None:
    """Clients of 0, 1, 2, 5 and 10 examples: who has one trains on it."""
    whole = tiny.partition([0, 1, 2, 5, 10])
    training, out = hold_out(whole, fraction, np.random.default_rng(3))
    assert out.sizes.tolist() == held
    for client in range(5):
        both = np.concatenate([training.of(client), out.of(client)])
        assert sorted(both.tolist()) == sorted(whole.of(client).tolist())
    again = hold_out(whole, fraction, np.random.default_rng(3))
    assert (training.digest(), out.digest()) == (again[0].digest(), again[1].digest())


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="held_out"):
        EvaluationOptions(local_epochs=1)
    with pytest.raises(ConfigurationError, match="held_out"):
        EvaluationOptions(held_out=1.0)


def test_a_run_reports_clients_and_classes(tmp_path: Path) -> None:
    asked = ("--evaluation.held_out", "0.25", "--evaluation.clients", "7", "--evaluation.local_epochs", "2")
    short = ("--rounds", "2", "--evaluate_every_rounds", "1", "--cohort_size", "3", "--evaluation.per_class", "true")
    assert main(["run", *asked, *short, "--run_dir", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        worst, mean, best = (float(row[f"clients/accuracy{end}"]) for end in ("_worst_10", "", "_best_10"))
        assert worst <= mean <= best
        classes = [float(row[f"class/{digit}"]) for digit in range(10)]
        assert np.mean(classes) == pytest.approx(float(row["accuracy"]), abs=0.05)  # the digits are nearly balanced
    assert float(rows[-1]["personal/accuracy"]) > 0
    whole, out = (Partition.load(tmp_path / "run" / name) for name in ("partition.npz", "held_out.npz"))
    assert set(out.indices) < set(whole.indices)
    with (tmp_path / "run" / "ledger.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            client = int(row["client"])
            assert int(row["examples"]) == whole.examples(client) - out.examples(client)
    assert list(json.loads((tmp_path / "run" / "summary.json").read_text())["final"]) == ["accuracy", "loss"]
