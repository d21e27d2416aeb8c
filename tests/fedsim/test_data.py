"""Short texts make short batches, and nothing else changes by it."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_partitions.dataset import FederatedData
from data_partitions.texts.tokens import TextData, pad_rows
from fedsim.briefing import Briefing
from fedsim.data import Examples
from fedsim.errors import ConfigurationError
from fedsim.evaluation import Evaluator
from fedsim.jobs import personal_job, round_job
from fedsim.method import ClientState, Plan
from fedsim.options import EvaluationOptions
from launch.build import build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests import tiny


class Whole(TextData):
    """Texts that keep every place, as a data set does that says nothing of them."""

    def spans(self, columns: dict[str, Tensor]) -> None:  # type: ignore[override]
        """Says nothing."""


def texts(task: str) -> FederatedData:
    """Texts of 1 to 8 tokens, the longest in the training split."""
    random = np.random.default_rng(3)

    def split(count: int) -> dict[str, Tensor]:
        rows = [random.integers(3, 20, random.integers(1, 7)).tolist() for _ in range(count)]
        labels = {"labels": torch.from_numpy(random.integers(tiny.LABELS, size=count))}
        tokens = {"input_ids": torch.from_numpy(pad_rows(rows, 8))}
        return tokens if task == "language_modelling" else tokens | labels

    names = () if task == "language_modelling" else tuple("abc")
    return TextData(split(40), split(11), names, task, classes=np.zeros(40, dtype=int), pad_token_id=0)


DATA = {
    "text_classification": (texts, ("gpt2", "roberta")),
    "language_modelling": (texts, ("gpt2_lm", "llama")),
    "text_to_text": (lambda _: tiny.answers(), ("gpt2_lm", "llama")),
}
CASES = [(task, backbone) for task, (_, backbones) in DATA.items() for backbone in backbones]


def outcome(data: FederatedData, backbone: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Any, set[int]]:
    """An update and an evaluation, and how wide the backbone's inputs were."""
    monkeypatch.setitem(tiny.DATA, backbone, lambda: data)
    built = tiny.build(backbone=backbone, dtype=torch.float64)
    widths = set[int]()
    layer = built.model.get_input_embeddings()
    layer.register_forward_hook(lambda _, inputs, __: widths.add(inputs[0].shape[1]))
    (trained,) = built.sequential().train([built.job(0, 19, epochs=2)])
    evaluator = Evaluator(built.model, built.parameters, built.module.task, built.test, 4, nullcontext)
    return trained.vector, evaluator.evaluate(built.start(), tiny.ONE_WORKER), widths


@pytest.mark.parametrize(("task", "backbone"), CASES)
def test_short_batches_give_what_whole_ones_give(task: str, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64; outputs stand in the order of the rows."""
    data = DATA[task][0](task)
    fields = {name: getattr(data, name) for name in ("train", "test", "label_names", "task", "classes", "pad_token_id")}
    short, found, widths = outcome(data, backbone, monkeypatch)
    long, expected, whole = outcome(Whole(**fields), backbone, monkeypatch)
    assert len(widths) > 2
    assert len(whole) == 1
    assert max(widths) <= max(whole)
    torch.testing.assert_close(short, long, rtol=0, atol=1e-13)
    assert found.outputs.keys() == expected.outputs.keys()
    for name, value in expected.outputs.items():
        torch.testing.assert_close(found.outputs[name], value, rtol=0, atol=1e-12)


def test_places_are_those_that_some_row_needs() -> None:
    """Behind the last token nothing is needed, before a question's first neither; an answer's end is everybody's."""
    tokens = torch.tensor([[7, 8, -1, -1, -1], [7, 8, 9, -1, -1], [7, -1, -1, -1, -1]], dtype=torch.int32)
    columns = {"input_ids": tokens, "labels": torch.zeros(3, dtype=torch.long)}
    examples = Examples(
        TextData(columns, columns, ("a",), "text_classification", pad_token_id=0), columns, tiny.CPU, torch.float32
    )
    assert examples.lengths is not None
    assert examples.lengths.tolist() == [2, 3, 1]
    assert examples.places(np.array([0, 2])) == slice(0, 2)
    batch = examples.batch(torch.tensor([2, 0]), places=slice(0, 2))
    assert batch["input_ids"].tolist() == [[7, 0], [7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    answered = {
        "input_ids": torch.tensor([[-1, -1, 5, 7, -1], [-1, 4, 5, 7, -1]], dtype=torch.int32),
        "labels": torch.tensor([[7, -100], [7, -100]]),
    }
    asked = TextData(answered, answered, (), "text_to_text", classes=np.zeros(2, dtype=int), pad_token_id=0)
    assert asked.spans(answered).tolist() == [[2, 5], [1, 5]]


def test_a_clients_batches_are_of_like_length_where_asked() -> None:
    """Also where it trains on for an evaluation."""
    built = tiny.build(backbone="roberta")
    lengths = np.arange(len(built.train)) % 7
    evaluation = EvaluationOptions(held_out=0.1, local_epochs=1)
    experiment = tiny.experiment(built, [20, 20], lengths=lengths, evaluation=evaluation)
    briefing = Briefing(built.shared(), [Plan(), Plan()], [ClientState(), ClientState()])
    jobs = (
        round_job(experiment, briefing, 0, 0, built.start(), None),
        personal_job(experiment, briefing, 1, 1, built.start(), None),
    )
    for job in jobs:
        assert len(job.batches) == 5
        assert sum(np.ptp(lengths[step]) for step in job.batches) <= 7


def test_like_lengths_are_asked_of_texts_alone() -> None:
    fabric, workers = start_workers("cpu", "32-true", 1)
    with pytest.raises(ConfigurationError, match=r"client\.group_by_length is true, but these data have no texts"):
        build(read_settings(["--client.group_by_length", "true"]), fabric, workers)
