"""CIFAR-10 from files like the hub's, and the real files where they are at hand."""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from data_partitions.dataset import FederatedData
from data_partitions.datasets.cifar10 import CIFAR10, LABEL_NAMES
from data_partitions.errors import DataError

REAL = Path(__file__).resolve().parents[4] / "shared/data/cifar10"
EXAMPLES = {"train": 12, "test": 5}


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_split(folder: Path, split: str, **replaced: Any) -> None:
    """Writes a split as on the hub; `replaced` gives other columns."""
    generator = np.random.default_rng(EXAMPLES[split])
    pixels = generator.integers(0, 256, (EXAMPLES[split], 32, 32, 3), dtype=np.uint8)
    columns = {
        "img": [{"bytes": encode(image), "path": None} for image in pixels],
        "label": [row % 10 for row in range(len(pixels))],
        **replaced,
    }
    features = None
    if not replaced:
        features = Features({"img": ImageFeature(), "label": ClassLabel(names=list(LABEL_NAMES))})
    Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def write_images(folder: Path, split: str, names: Sequence[str] = LABEL_NAMES) -> np.ndarray:
    """Writes one image of each class as a file; gives their pixels (N, 32, 32, 3)."""
    pixels = np.random.default_rng(EXAMPLES[split]).integers(0, 256, (len(names), 32, 32, 3), dtype=np.uint8)
    for name, image in zip(names, pixels, strict=True):
        (folder / split / name).mkdir(parents=True)
        (folder / split / name / "0.png").write_bytes(encode(image))
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in EXAMPLES:
        write_split(tmp_path, split)
    return tmp_path


def load(folder: Path, **arguments: Any) -> FederatedData:
    return CIFAR10(str(folder), cache=str(folder / "cache"), **arguments).load()


def test_columns_are_bytes(folder: Path) -> None:
    data = load(folder)
    for name, split in (("train", data.train), ("test", data.test)):
        assert split["pixel_values"].shape == (EXAMPLES[name], 3, 32, 32)
        assert split["pixel_values"].dtype == torch.uint8
        assert split["labels"].dtype == torch.int64
        assert split["labels"].tolist() == [row % 10 for row in range(EXAMPLES[name])]
    pixels = np.random.default_rng(12).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(data.train["pixel_values"].permute(0, 2, 3, 1), pixels)
    assert data.label_names == LABEL_NAMES
    assert data.task == "image_classification"
    assert data.user is None
    assert len(list((folder / "cache").iterdir())) == 2
    assert torch.equal(load(folder).train["pixel_values"], data.train["pixel_values"])


def test_transform_augments_only_with_draws(folder: Path) -> None:
    data = load(folder, image_size=64)
    draws = {name: draw[1] for name, draw in data.draw(np.random.default_rng(1), (3, 12)).items()}
    plain, again = data.transform(data.train, None), data.transform(data.train, {})
    augmented, replayed = data.transform(data.train, draws), data.transform(data.train, draws)
    for batch in (plain, augmented):
        assert batch["pixel_values"].shape == (12, 3, 64, 64)
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["pixel_values"].abs().max() < 2
        assert batch["pixel_values"].mean().abs() < 0.1
        assert torch.equal(batch["labels"], data.train["labels"])
    assert torch.equal(plain["pixel_values"], again["pixel_values"])
    assert torch.equal(augmented["pixel_values"], replayed["pixel_values"])
    assert not torch.equal(plain["pixel_values"], augmented["pixel_values"])
    assert data.train["pixel_values"].dtype == torch.uint8


def test_without_augmentation_nothing_is_drawn(folder: Path) -> None:
    data = load(folder, image_size=32, augment=False)
    assert data.draw(np.random.default_rng(0), (2, 4)) == {}
    expected = (data.test["pixel_values"] / 255 - 0.5) / 0.5
    assert torch.equal(data.transform(data.test, {})["pixel_values"], expected)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"label": [0] * 4 + [10]}, "test label 10 at row 4 is outside the expected 0 to 9"),
        ({"label": ["cat"] * 5}, "test column label holds string, expected integers"),
        ({"img": ["a.png"] * 5}, "test column img holds string, expected encoded images"),
        ({"img": [{"bytes": b"x", "path": None}] * 5}, "test image at row 0 cannot be decoded"),
        ({"img": [{"bytes": encode(np.zeros((32, 31, 3), np.uint8)), "path": None}] * 5}, "row 0 is 32 x 31 pixels"),
        ({"img": [], "label": []}, "has no rows in test"),
    ],
)
def test_refuses_what_is_no_cifar10(folder: Path, replaced: dict[str, list], message: str) -> None:
    write_split(folder, "test", **replaced)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("cache/.*"))


def test_refuses_a_missing_split_and_a_missing_column(folder: Path) -> None:
    with pytest.raises(DataError, match="no file for the split test"):
        load(folder / "train.parquet")
    Dataset.from_dict({"image": [0], "label": [0]}).to_parquet(folder / "train.parquet")
    with pytest.raises(DataError, match="no column 'img', it has 'image', 'label'"):
        load(folder)


def test_nothing_is_left_in_the_cache_after_an_error(folder: Path) -> None:
    broken = [{"bytes": encode(np.zeros((32, 32, 3), np.uint8)), "path": "0.png"}, {"bytes": b"x", "path": "1.png"}]
    write_split(folder, "train", img=broken, label=[0, 1])
    with pytest.raises(DataError, match=r"train image at row 1 \(1.png\) cannot be decoded"):
        load(folder)
    assert not list(folder.glob("cache/*"))
    write_split(folder, "train", img=broken[:1] * 2, label=["cat", "dog"])
    with pytest.raises(DataError, match="train column label holds string"):
        load(folder)
    assert not list(folder.glob("cache/*"))


def test_an_image_folder(tmp_path: Path) -> None:
    pixels = {split: write_images(tmp_path, split) for split in EXAMPLES}
    (tmp_path / "test" / "frog" / "0.png").unlink()  # a class without test images keeps its number
    data = load(tmp_path)
    np.testing.assert_array_equal(data.train["pixel_values"].permute(0, 2, 3, 1), pixels["train"])
    np.testing.assert_array_equal(data.test["pixel_values"].permute(0, 2, 3, 1), np.delete(pixels["test"], 6, 0))
    assert data.train["labels"].tolist() == list(range(10))
    assert data.test["labels"].tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x", "cannot be decoded"),
        (encode(np.zeros((32, 31, 3), np.uint8)), "is 32 x 31 pixels"),
    ],
    ids=["no image", "another size"],
)
def test_a_broken_image_of_a_folder_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    for split in EXAMPLES:
        write_images(tmp_path, split)
    (tmp_path / "test" / "cat" / "0.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"test image at row 3 ({tmp_path}/test/cat/0.png) {message}")
    assert "\n" not in str(caught.value)
    (whole,) = (tmp_path / "cache").iterdir()  # the training images
    assert whole.stat().st_size > 10 * 3 * 32 * 32


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("airplane", "bird"), "has 2 classes, label 1 being 'bird', expected 'automobile'"),
        ((*LABEL_NAMES, "zebra"), "has 11 classes, label 10 being 'zebra', expected None"),
        (LABEL_NAMES[::-1], "has 10 classes, label 0 being 'truck', expected 'airplane'"),
        ((), "has 0 classes, label 0 being None, expected 'airplane'"),
    ],
)
def test_refuses_other_names_of_labels(folder: Path, names: tuple[str, ...], message: str) -> None:
    """Ten other classes would load and train well, on labels that mean something else."""
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=list(names))})
    cells = [{"bytes": encode(np.zeros((32, 32, 3), np.uint8)), "path": None}]
    labels = [0] * min(1, len(names))
    Dataset.from_dict({"img": cells[: len(labels)], "label": labels}, features).to_parquet(folder / "test.parquet")
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert f"data.path {str(folder)!r}, test, has" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_other_class_folders(tmp_path: Path) -> None:
    names = ("car", *LABEL_NAMES[2:], "plane")
    for split in EXAMPLES:
        write_images(tmp_path, split, names)
    with pytest.raises(DataError, match="train, has 10 classes, label 0 being 'bird', expected 'airplane'"):
        load(tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_refuses_an_image_size(size: Any) -> None:
    with pytest.raises(DataError, match=r"data\.image_size is"):
        CIFAR10(image_size=size)


def test_importing_is_cheap() -> None:
    code = (
        "import sys, data_partitions.datasets.cifar10\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'datasets', 'pyarrow', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real CIFAR-10 is not at {REAL}")
def test_the_real_files(tmp_path: Path) -> None:
    """1,000 images of each split, so that it stays fast; decoding all 60,000 takes 6 seconds."""
    for split in EXAMPLES:
        table = Dataset.from_parquet(str(REAL / f"{split}.parquet"), cache_dir=str(tmp_path / "datasets"))
        assert len(table) == {"train": 50_000, "test": 10_000}[split]
        table.select(range(1000)).to_parquet(tmp_path / f"{split}.parquet")
    data = load(tmp_path)
    for columns in (data.train, data.test):
        assert columns["pixel_values"].shape == (1000, 3, 32, 32)
        assert columns["labels"].unique().tolist() == list(range(10))
        assert (columns["pixel_values"].float().mean((0, 2, 3)) - torch.tensor([125, 123, 114])).abs().max() < 5
