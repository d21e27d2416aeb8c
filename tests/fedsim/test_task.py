import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fedsim.errors import ConfigurationError
from fedsim.task import Classification, TextToText, task_named
from tests import tiny


class Table(nn.Module):
    """Looks the logits of a row up: row number in, logits out."""

    def __init__(self, logits: list[list[float]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=dtype))

    def forward(self, number: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[number])


LOGITS = [[0.0, 0.0], [math.log(3), 0.0], [0.0, math.log(7)]]
BATCH = {"number": torch.arange(3), "labels": torch.tensor([0, 1, 1]), "weight": torch.ones(3)}


def test_losses_and_accuracy_by_hand() -> None:
    """Probabilities of the right label are 1/2, 1/4 and 7/8; the first row is a tie, which goes to the lower label."""
    task, model = Classification(), Table(LOGITS)
    expected = [math.log(2), math.log(4), math.log(8 / 7)]
    assert task.example_losses(model, BATCH).tolist() == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        metrics = task.metrics(task.outputs(model, BATCH), BATCH)
    assert metrics == {"accuracy": pytest.approx(2 / 3), "loss": pytest.approx(sum(expected) / 3, rel=1e-6)}
    assert dict(task.higher_is_better) == {"accuracy": True, "loss": False}


def test_losses_are_per_example_and_differentiable() -> None:
    """The gradient of one row's loss is that row's softmax less its label, and nothing of the others."""
    model = Table(LOGITS)
    Classification().example_losses(model, BATCH)[1].backward()
    gradient = model.logits.grad
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [0.75, -0.75], [0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_losses_are_at_least_float32(dtype: torch.dtype) -> None:
    expected = torch.promote_types(dtype, torch.float32)
    assert Classification().example_losses(Table(LOGITS, dtype), BATCH).dtype == expected


def test_accuracy_is_over_examples_not_over_labels() -> None:
    """Three rows of label 0 are right and the one of label 1 is wrong: 3/4, where a mean over labels says 1/2."""
    logits = torch.tensor([[1.0, 0.0]] * 4)
    columns = {"labels": torch.tensor([0, 0, 0, 1])}
    assert Classification().metrics({"logits": logits}, columns)["accuracy"] == 0.75


def test_tasks_go_by_the_names_that_data_sets_give() -> None:
    for name in ("image_classification", "text_classification"):
        assert isinstance(task_named(name), Classification)
    assert isinstance(task_named("text_to_text"), TextToText)
    with pytest.raises(ConfigurationError, match="did you mean"):
        task_named("image_clasification")


class Parrot(nn.Module):
    """A language model that answers with the logits that it is given, whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, logits_to_keep: int, **_: Tensor) -> SimpleNamespace:
        assert logits_to_keep == self.logits.shape[1]
        return SimpleNamespace(logits=self.logits)


def test_answers_by_hand() -> None:
    """Only a row whose every token is right counts; what stands behind an answer's end counts nothing."""
    labels = torch.tensor([[1, 2], [1, 2], [0, -100]])
    batch = {"labels": labels, "input_ids": torch.zeros(3, 4), "attention_mask": torch.ones(3, 4).long()}
    logits = torch.zeros(3, 3, 3)
    logits[0, 0, 1] = logits[0, 1, 2] = math.log(2)  # right twice: 2 of 1 + 1 + 2
    logits[1, 0, 1] = logits[1, 1, 0] = math.log(2)  # right, then wrong: 1 of 4
    logits[2, 0, 0] = math.log(6)  # right: 6 of 8; the token behind does not matter
    model, task = Parrot(logits), TextToText()
    expected = [math.log(2), (math.log(2) + math.log(4)) / 2, math.log(8 / 6)]
    assert task.example_losses(model, batch).tolist() == pytest.approx(expected, rel=1e-6)
    metrics = task.metrics(task.outputs(model, batch), batch)
    assert metrics == {"accuracy": pytest.approx(2 / 3), "loss": pytest.approx(sum(expected) / 3, rel=1e-6)}
    assert dict(task.higher_is_better) == {"accuracy": True, "loss": False}


@pytest.mark.parametrize("backbone", ["gpt2_lm", "llama"])
def test_an_answer_counts_where_greedy_decoding_writes_it(backbone: str) -> None:
    """Questions in one batch, padded, against each decoded alone; half of the answers are what the model writes."""
    built = tiny.build(backbone=backbone)
    model, columns = built.model, {name: column[:8].clone() for name, column in built.test.columns.items()}
    width = columns["labels"].shape[1]
    written = []
    for row in range(8):
        question = columns["input_ids"][row, :-width]
        question = question[question >= 0][None].long()
        whole = model.generate(
            input_ids=question,
            attention_mask=torch.ones_like(question),
            max_new_tokens=width,
            do_sample=False,
            eos_token_id=None,
        )
        written.append(whole[0, question.shape[1] :])
        if row % 2:
            columns["labels"][row] = columns["input_ids"][row, -width:] = written[row]
    task = TextToText()
    batch = tiny.answers().transform(columns, None)
    with torch.no_grad():
        outputs = task.outputs(model, batch)
    right = [
        all(token in (-100, reply) for token, reply in zip(label.tolist(), replies.tolist(), strict=True))
        for label, replies in zip(columns["labels"], written, strict=True)
    ]
    assert sum(right) >= 4
    assert task.metrics(outputs, columns)["accuracy"] == pytest.approx(sum(right) / 8)


def test_images_of_another_size_than_the_backbone_interpolate_its_positions() -> None:
    """CIFAR-10 at 64 px on a backbone pretrained at 224: without it, transformers refuses the size."""
    built = tiny.build()
    images = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        found = Classification().outputs(built.model, {"pixel_values": images, "weight": torch.ones(3)})["logits"]
        expected = built.model(pixel_values=images, interpolate_pos_encoding=True).logits
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="size"):
        built.model(pixel_values=images)
