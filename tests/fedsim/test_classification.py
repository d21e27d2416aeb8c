import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fedsim.classification import Classification, MultiLabel
from fedsim.errors import ConfigurationError
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
        metrics = task.metrics(task.outputs(model, BATCH))
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
    labels = torch.tensor([0, 0, 0, 1])
    assert Classification().metrics({"logits": logits, "labels": labels})["accuracy"] == 0.75


def test_images_of_another_size_than_the_backbone_interpolate_its_positions() -> None:
    """CIFAR-10 at 64 px on a backbone pretrained at 224: without it, transformers refuses the size."""
    built = tiny.build()
    images = torch.randn(3, 1, 12, 12)
    batch = {"pixel_values": images, "labels": torch.zeros(3).long(), "weight": torch.ones(3)}
    with torch.no_grad():
        found = Classification().outputs(built.model, batch)["logits"]
        expected = built.model(pixel_values=images, interpolate_pos_encoding=True).logits
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="size"):
        built.model(pixel_values=images)


def test_glue_s_metrics_by_hand() -> None:
    """Label 1 is said three times, twice rightly, and missed once; label 0 is right once and wrong once."""
    said, labels = torch.tensor([1, 1, 1, 0, 0]), torch.tensor([1, 1, 0, 0, 1])
    outputs = {"logits": torch.nn.functional.one_hot(said, 2).float(), "labels": labels}
    found = Classification(("f1", "accuracy", "matthews", "macro_f1")).metrics(outputs)
    assert list(found) == ["f1", "accuracy", "matthews", "macro_f1", "loss"]
    assert found["f1"] == pytest.approx(4 / 6)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert found["macro_f1"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert list(Classification(("f1",)).higher_is_better) == ["f1", "loss"]


def test_accuracy_of_each_class() -> None:
    """Label 0 is right once of two times, label 1 always, and nothing is known of label 2."""
    said, labels = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    found = Classification().by_class({"logits": torch.nn.functional.one_hot(said, 3).float(), "labels": labels})
    assert found[:2].tolist() == [0.5, 1.0]
    assert found[2].isnan()


def test_an_unknown_metric_is_refused_with_a_near_one() -> None:
    with pytest.raises(ConfigurationError, match="did you mean"):
        Classification(("acuracy",))
    with pytest.raises(ConfigurationError, match="macro_f1"):
        MultiLabel(("macro_f2",))


MULTI = {"number": torch.arange(2), "labels": torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8)}


def test_multi_label_by_hand() -> None:
    """Logits -2, 0.5, 0.5 and 2, -2, 3: label 0 is said once and wrongly, label 1 once and wrongly, label 2 rightly."""
    task, model = MultiLabel(), Table([[-2.0, 0.5, 0.5], [2.0, -2.0, 3.0]])
    one = [math.log1p(math.exp(x)) for x in (2.0, 0.5, -0.5)]
    two = [math.log1p(math.exp(x)) for x in (2.0, -2.0, -3.0)]
    expected = [sum(one) / 3, sum(two) / 3]
    assert task.example_losses(model, MULTI).tolist() == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        outputs = task.outputs(model, MULTI)
    found = task.metrics(outputs)
    assert list(found) == list(task.higher_is_better) == ["macro_f1", "micro_f1", "average_precision", "loss"]
    assert found["macro_f1"] == pytest.approx(1 / 3)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (4 + 3))
    # Label 0's one example stands second of two; nobody has label 1, which is left out; label 2's are all there are.
    assert found["average_precision"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["loss"] == pytest.approx(sum(expected) / 2, rel=1e-6)
    by_class = task.by_class(outputs)
    assert by_class[[0, 2]].tolist() == [0, 1]
    assert by_class[1].isnan()


def test_labels_that_nobody_has_or_says_do_not_count() -> None:
    """A client with one of three labels, perfectly told, is perfect; one with none has no score, and no F1 either."""
    labels, logits = torch.tensor([[1, 0, 0], [0, 0, 0]]), torch.tensor([[2.0, -2, -2], [-2, -2, -2]])
    assert MultiLabel().metrics({"logits": logits, "labels": labels})["macro_f1"] == 1
    nothing = MultiLabel().metrics({"logits": logits[1:], "labels": labels[1:]})
    assert math.isnan(nothing["macro_f1"])
    assert math.isnan(nothing["average_precision"])
    right = {"logits": torch.tensor([[1.0, 0.0]]), "labels": torch.tensor([0])}
    assert math.isnan(Classification(("f1",)).metrics(right)["f1"])


def test_f1_is_of_label_1_among_any_number_of_labels() -> None:
    outputs = {"logits": torch.eye(3), "labels": torch.tensor([0, 1, 1])}
    assert Classification(("f1",)).metrics(outputs)["f1"] == pytest.approx(2 / 3)


def test_probabilities_near_one_half_are_not_taken_twice() -> None:
    """torchmetrics takes logits within 0 to 1 for probabilities: 0.3 would pass for below a half."""
    outputs = {"logits": torch.tensor([[0.3, 0.2]]), "labels": torch.tensor([[1, 1]])}
    assert MultiLabel().metrics(outputs)["micro_f1"] == 1
