"""The embedded data set, and what every data set is held to."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from data_partitions.dataset import FederatedData
from data_partitions.datasets.digits import TRAIN_EXAMPLES, Digits, normalise
from data_partitions.errors import DataError


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return Digits().load()


def columns(labels: list[int]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(len(labels), 1, 2, 2), "labels": torch.tensor(labels, dtype=torch.int64)}


def test_shapes_and_scale(digits: FederatedData) -> None:
    for split, examples in ((digits.train, TRAIN_EXAMPLES), (digits.test, 360)):
        assert split["pixel_values"].shape == (examples, 1, 8, 8)
        assert split["pixel_values"].dtype == torch.float32
        assert split["labels"].dtype == torch.int64
        assert split["labels"].unique().tolist() == list(range(10))
        assert split["pixel_values"].mean().abs() < 0.05
        assert (split["pixel_values"].std() - 1).abs() < 0.05
    assert digits.label_names == tuple("0123456789")
    assert digits.task == "image_classification"
    assert digits.user is None


def test_split_keeps_every_image_once_and_never_changes(digits: FederatedData) -> None:
    """Curves of different seeds are compared on the same 360 test images."""
    images, labels = load_digits(return_X_y=True)
    both = np.concatenate([split["pixel_values"].reshape(-1, 64).numpy() for split in (digits.train, digits.test)])
    given = np.concatenate([split["labels"].numpy() for split in (digits.train, digits.test)])
    expected = np.column_stack([normalise(images), labels])
    np.testing.assert_array_equal(np.unique(np.column_stack([both, given]), axis=0), np.unique(expected, axis=0))
    assert digits.test["labels"][:12].tolist() == Digits().load().test["labels"][:12].tolist()


def test_no_augmentation_by_default(digits: FederatedData) -> None:
    batch = {name: column[:4] for name, column in digits.train.items()}
    assert digits.draw(np.random.default_rng(0), (2, 4)) == {}
    assert digits.transform(batch, {}) is batch
    assert digits.transform(batch, None) is batch


def test_accepts_users_and_tasks_without_labels() -> None:
    users = np.array(["a", "b"])
    written = FederatedData(columns([0, 1]), columns([1]), ("no", "yes"), "image_classification", users)
    assert written.user is users
    tokens = {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}
    assert FederatedData(tokens, tokens, (), "language_modelling").label_names == ()


@pytest.mark.parametrize(
    ("train", "test", "user", "message"),
    [
        (columns([0, 2, 1]), columns([0]), None, "train label 2 at row 1 is outside the expected 0 to 1"),
        (columns([0, 1]), columns([0, -1]), None, "test label -1 at row 1 is outside"),
        (columns([]), columns([0]), None, "train has no examples"),
        (columns([0]), {}, None, "test has no examples"),
        ({**columns([0, 1]), "labels": torch.tensor([0])}, columns([0]), None, "columns have lengths"),
        ({"x": torch.zeros(1)}, columns([0]), None, "expected one called labels"),
        (columns([0, 1]), columns([0]), np.array(["a"]), "user has shape"),
    ],
)
def test_refuses_malformed_data(train: dict, test: dict, user: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        FederatedData(train, test, ("no", "yes"), "image_classification", user)
    assert "\n" not in str(caught.value)


def test_importing_is_cheap() -> None:
    """`fedsim list` and the partition command must not wait for torch or scikit-learn."""
    code = (
        "import sys, data_partitions.datasets.digits\n"
        "from data_partitions.partitioners import dirichlet, iid, natural\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
