"""FLAIR from a folder as Apple's script fills it, and from columns as on the hub, on a few images."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from data_partitions.datasets.flair import FLAIR, LABEL_NAMES, rarest_labels
from data_partitions.errors import DataError
from data_partitions.images import encoded
from data_partitions.images.data import ImageData

LABELS = {
    "train": [["structure", "animal"], ["structure"], [], ["food", "structure", "food"], ["animal", "food"]],
    "val": [["religion"]],
    "test": [["art"], [], ["structure"]],
}
USERS = {"train": ["7@N00", "7@N00", "2@N01", "7@N00", "2@N01"], "val": ["5@N00"], "test": ["9@N00"] * 3}
SIZE = 28


def pixels(split: str) -> np.ndarray:
    """Images (N, SIZE, SIZE, 3), which PNG keeps as they are."""
    shape = (len(LABELS[split]), SIZE, SIZE, 3)
    return np.random.default_rng(len(split)).integers(0, 256, shape, dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def entries() -> list[dict[str, Any]]:
    """The metadata, splits mixed as in the published file."""
    rows = [
        {
            "user_id": USERS[split][row],
            "image_id": f"{split}{row}",
            "labels": labels,
            "partition": split,
            "fine_grained_labels": ["bag"],
        }
        for split in LABELS
        for row, labels in enumerate(LABELS[split])
    ]
    return rows[::2] + rows[1::2]


def write_metadata(folder: Path, content: Any) -> None:
    (folder / "labels_and_metadata.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A download; .jpg are PNGs inside, so that pixels can be compared."""
    images = tmp_path / "flair" / "small_images"
    images.mkdir(parents=True)
    for split in LABELS:
        for row, image in enumerate(pixels(split)):
            (images / f"{split}{row}.jpg").write_bytes(encode(image))
    write_metadata(tmp_path / "flair", entries())
    return tmp_path / "flair"


def load(folder: Path, **arguments: Any) -> ImageData:
    data = FLAIR(str(folder), **{"image_size": SIZE, "cache": str(folder.parent / "cache"), **arguments}).load()
    assert isinstance(data, ImageData)
    return data


def marked(split: str) -> list[list[int]]:
    return [[int(name in labels) for name in LABEL_NAMES] for labels in LABELS[split]]


def by_image(data: ImageData) -> list[int]:
    """The rows of the columns in the order of `LABELS`: the metadata have the even ones of all splits first."""
    order = [int(entry["image_id"].removeprefix("train")) for entry in entries() if entry["partition"] == "train"]
    assert len(order) == len(data.train["labels"])
    return np.argsort(order).tolist()


def test_a_download(folder: Path) -> None:
    data = load(folder)
    rows = by_image(data)
    assert data.train["pixel_values"].dtype == data.train["labels"].dtype == torch.uint8
    np.testing.assert_array_equal(data.train["pixel_values"][rows].permute(0, 2, 3, 1), pixels("train"))
    assert data.train["labels"][rows].tolist() == marked("train")
    assert data.user is not None
    assert data.user[rows].tolist() == USERS["train"]
    assert sorted(map(sum, data.test["labels"].tolist())) == [0, 1, 1]
    assert data.label_names == LABEL_NAMES
    assert len(LABEL_NAMES) == 17
    assert list(LABEL_NAMES) == sorted(LABEL_NAMES)
    assert data.task == "multi_label_image_classification"
    assert data.classes is not None
    # structure is on three images, animal and food on two each; of equals the first wins, nothing is class 17
    assert data.classes[rows].tolist() == [0, 16, 17, 5, 0]


def test_the_split_to_test_on(folder: Path) -> None:
    data = load(folder, test_split="val")
    np.testing.assert_array_equal(data.test["pixel_values"].permute(0, 2, 3, 1), pixels("val"))
    assert data.test["labels"].tolist() == marked("val")
    with pytest.raises(DataError, match=r"data\.test_split is 'train', expected test or val"):
        FLAIR(test_split="train")  # type: ignore[arg-type]


def test_images_may_lie_in_images(folder: Path) -> None:
    (folder / "small_images").rename(folder / "images")
    assert len(load(folder).train["labels"]) == 5
    (folder / "images").rename(folder / "photographs")
    with pytest.raises(DataError, match="has no folder small_images"):
        load(folder)


def test_columns_as_on_the_hub(tmp_path: Path) -> None:
    kinds = {"image": ImageFeature(), "user_id": Value("string"), "labels": List(Value("string"))}
    features = Features({**kinds, "image_id": Value("string")})
    for split in ("train", "test"):
        images = [{"bytes": encode(image), "path": None} for image in pixels(split)]
        names = [str(row) for row in range(len(images))]
        columns = {"image": images, "user_id": USERS[split], "labels": LABELS[split], "image_id": names}
        Dataset.from_dict(columns, features).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    data = load(tmp_path)
    for split, found in (("train", data.train), ("test", data.test)):
        np.testing.assert_array_equal(found["pixel_values"].permute(0, 2, 3, 1), pixels(split))
        assert found["labels"].tolist() == marked(split)
    assert data.user is not None
    assert data.user.tolist() == USERS["train"]
    assert data.classes is not None
    assert data.classes.tolist() == [0, 16, 17, 5, 0]
    columns["labels"] = [["art"], ["zebra"], []]
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="test, row 1 has the label 'zebra', expected any of animal, art"):
        load(tmp_path)


def test_a_second_start_decodes_nothing_and_a_changed_image_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folder)
    image = folder / "small_images" / "test1.jpg"
    with monkeypatch.context() as patched:
        patched.setattr(encoded, "decode_image", lambda *_: pytest.fail("decoded"))
        again = load(folder)
        assert torch.equal(first.train["pixel_values"], again.train["pixel_values"])
        os.utime(image, ns=(0, 0))  # as another file of the same name and size has another time
        with pytest.raises(pytest.fail.Exception):
            load(folder)
    black = encode(np.zeros((SIZE, SIZE, 3), np.uint8))
    image.write_bytes(black)
    assert (load(folder).test["pixel_values"] == 0).all((1, 2, 3)).sum() == 1


def test_transform_crops_and_flips_only_with_draws(folder: Path) -> None:
    data = load(folder, normalise="imagenet")
    draws = {name: draw[0] for name, draw in data.draw(np.random.default_rng(1), (2, 5)).items()}
    assert draws["crop"].abs().max() == SIZE // 14 == 2
    plain, augmented = data.transform(data.train, {}), data.transform(data.train, draws)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.equal(plain["pixel_values"], (data.train["pixel_values"] / 255 - mean) / std)
    assert augmented["pixel_values"].shape == plain["pixel_values"].shape
    assert not torch.equal(augmented["pixel_values"], plain["pixel_values"])
    assert torch.equal(augmented["labels"], data.train["labels"])
    assert load(folder, augment=False).draw(np.random.default_rng(1), (2, 5)) == {}


def test_images_of_any_size_become_squares(folder: Path) -> None:
    """Scaled until the shorter side fits, and cut to the middle; grey ones have three channels."""
    wide = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    scaled = np.asarray(Image.fromarray(wide).resize((28, 14), Image.Resampling.BICUBIC))
    for row, image in enumerate((wide, wide[:, :, 0], wide.transpose(1, 0, 2))):
        (folder / "small_images" / f"test{row}.jpg").write_bytes(encode(image))
    data = load(folder, image_size=14)
    order = [entry["image_id"] for entry in entries() if entry["partition"] == "test"]
    squares = dict(zip(order, data.test["pixel_values"].permute(0, 2, 3, 1), strict=True))
    np.testing.assert_array_equal(squares["test0"], scaled[:, 7:21])
    np.testing.assert_array_equal(squares["test1"], np.repeat(scaled[:, 7:21, :1], 3, axis=2))
    np.testing.assert_array_equal(squares["test2"], scaled[:, 7:21].transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("number", "field", "value", "message"),
    [
        (0, "labels", ["art", "zebra"], "train0 has the label 'zebra', expected any of animal, art"),
        (0, "labels", [["art"]], r"train0 has the label \['art'\], expected any of"),
        (0, "labels", "art", "train0 has labels 'art', expected a list of names"),
        (3, "partition", "dev", "entry 3 has partition 'dev', expected train, val or test"),
        (3, "partition", None, "entry 3 has partition None, expected a text"),
        (1, "user_id", 7, "entry 1 has user_id 7, expected a text"),
    ],
)
def test_refuses_broken_metadata(folder: Path, number: int, field: str, value: Any, message: str) -> None:
    broken = entries()
    broken[number][field] = value
    write_metadata(folder, broken)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "labels_and_metadata.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": "1",', "labels_and_metadata.json is no JSON"),
        ("{}", "is a JSON dict, expected a list of images"),
        ("[7]", "entry 0 is a JSON int, expected an object"),
        ('[{"image_id": "1", "user_id": "2", "partition": "test"}]', "entry 0 has no labels"),
        ('[{"image_id": "1", "user_id": "2", "partition": "test", "labels": []}]', "has no image of partition train"),
    ],
)
def test_refuses_what_is_no_metadata(folder: Path, content: str, message: str) -> None:
    (folder / "labels_and_metadata.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_refuses_a_folder_without_metadata(folder: Path) -> None:
    (folder / "labels_and_metadata.json").unlink()
    with pytest.raises(DataError, match=r"has no labels_and_metadata\.json and no train\.parquet") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "reason"), [(b"x", "cannot be decoded"), (None, "cannot be read")])
def test_a_broken_and_a_missing_image_are_named(folder: Path, content: bytes | None, reason: str) -> None:
    image = folder / "small_images" / "train3.jpg"
    image.unlink()
    if content is not None:
        image.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load(folder)
    assert str(image) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(folder.parent.glob("cache/*.npy"))


def test_the_rarest_label() -> None:
    table = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 1]], np.uint8)
    assert rarest_labels(table).tolist() == [1, 0, 3, 2, 1]


def test_importing_is_cheap() -> None:
    code = (
        "import sys, data_partitions.datasets.flair, data_partitions.datasets.image_columns\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'datasets', 'pyarrow', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
