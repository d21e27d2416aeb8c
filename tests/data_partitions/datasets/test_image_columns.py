"""Images of any data set: columns by name, labels numbered or named, users, image folders."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from pyarrow import parquet

from data_partitions.datasets.image_columns import Images
from data_partitions.errors import DataError
from data_partitions.images.data import ImageData

COUNTS = {"train": 4, "validation": 3, "test": 3}


def pixels(split: str) -> np.ndarray:
    return np.random.default_rng(len(split)).integers(0, 256, (COUNTS[split], 16, 16, 3), dtype=np.uint8)


def encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def cells(split: str) -> list[dict[str, Any]]:
    return [{"bytes": encode(image), "path": None} for image in pixels(split)]


def write(folder: Path, labels: dict[str, list], names: list[str] | None = None, **columns: list) -> Path:
    """Writes splits with the columns picture and kind; further columns are of the training split."""
    folder.mkdir(exist_ok=True)
    for split, values in labels.items():
        held = {"picture": cells(split)[: len(values)], "kind": values, **(columns if split == "train" else {})}
        features = Dataset.from_dict(held).features
        features["picture"] = ImageFeature()
        if names is not None:
            features["kind"] = ClassLabel(names=names)
        Dataset.from_dict(held, Features(features)).to_parquet(folder / f"{split}.parquet")
    return folder


def load(folder: Path, **arguments: Any) -> ImageData:
    chosen = {
        "image_column": "picture",
        "label_column": "kind",
        "image_size": 16,
        "cache": str(folder.parent / "cache"),
    }
    data = Images(str(folder), **{**chosen, **arguments}).load()
    assert isinstance(data, ImageData)
    return data


@pytest.mark.parametrize(
    ("train", "test", "names", "numbers"),
    [
        (["cat", "ant", "cat", "dog"], ["dog", "ant", "dog"], ("ant", "cat", "dog"), ([1, 0, 1, 2], [2, 0, 2])),
        ([2, 0, 0, 3], [3, 3, 0], ("0", "1", "2", "3"), ([2, 0, 0, 3], [3, 3, 0])),
    ],
    ids=["names", "integers"],
)
def test_labels_are_numbered_as_those_of_texts(
    tmp_path: Path, train: list, test: list, names: tuple[str, ...], numbers: tuple[list[int], list[int]]
) -> None:
    data = load(write(tmp_path / "data", {"train": train, "test": test}))
    assert data.label_names == names
    for split, columns, expected in (("train", data.train, numbers[0]), ("test", data.test, numbers[1])):
        assert columns["labels"].tolist() == expected
        assert columns["labels"].dtype == torch.int64
        assert columns["pixel_values"].dtype == torch.uint8
        np.testing.assert_array_equal(columns["pixel_values"].permute(0, 2, 3, 1), pixels(split))
    assert data.task == "image_classification"
    assert data.user is None


def test_labels_with_names_keep_their_numbers(tmp_path: Path) -> None:
    """One that no image has keeps its name, so that heads of the same data set fit each other."""
    folder = write(tmp_path / "data", {"train": [2, 0, 2, 2], "test": [0, 2, 2]}, names=["z", "unused", "a"])
    data = load(folder)
    assert data.label_names == ("z", "unused", "a")
    assert data.train["labels"].tolist() == [2, 0, 2, 2]
    write(folder, {"test": [0, 2, 2]}, names=["z", "a", "unused"])
    with pytest.raises(DataError, match="label 1 being 'a', expected 'unused'"):
        load(folder)


def test_a_test_label_that_training_lacks_is_refused_unless_declared(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"train": [0, 1, 0, 1], "test": [0, 2, 1]})
    with pytest.raises(DataError, match="test label 2 at row 1 has no example in train") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
    write(folder, {"train": [0, 1, 0, 1], "test": [0, 2, 1]}, ["ant", "bee", "cat"])
    assert load(folder).test["labels"].tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 0, 1], ["0", "1", "0"], "test column kind holds names, expected integers as in train"),
        (["0", "1", "0", "1"], [True, False, True], "test column kind holds bool, expected names or integers"),
        ([0.5, 1.0, 0.5, 1.0], [1, 0, 1], "train column kind holds double, expected names or integers"),
        ([[0], [1, 2], [0], [1]], [0, 1, 0], "train column kind holds list<.*>, expected names or integers"),
        ([0, -1, 0, 1], [0, 1, 0], "train label -1 at row 1 is outside the expected 0 to 99999"),
        (["a", "", "a", "b"], ["a", "b", "a"], "train column kind is empty at row 1, expected a name"),
        ([0, 0, 0, 0], [0, 0, 0], "train has the one label '0', expected two at least"),
    ],
)
def test_refuses_labels(tmp_path: Path, train: list, test: list, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path / "data", {"train": train, "test": test}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("users", [["b", "a", "b", "c"], [7, 7, 2, 2]])
def test_users_are_those_of_training(tmp_path: Path, users: list) -> None:
    folder = write(tmp_path / "data", {"train": [0, 1, 0, 1], "test": [0, 1, 1]}, writer=users)
    data = load(folder, user_column="writer")
    assert data.user is not None
    assert data.user.tolist() == users
    with pytest.raises(DataError, match="no column 'author', it has 'picture', 'kind', 'writer'"):
        load(folder, user_column="author")


def test_users_must_be_sortable(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"train": [0, 1, 0, 1], "test": [0, 1, 1]}, writer=[[1], [2, 3], [1], [1]])
    with pytest.raises(
        DataError, match=r"train column writer holds list<.*name another column with --data\.user_column"
    ):
        load(folder, user_column="writer")


def test_another_split_and_configuration(tmp_path: Path) -> None:
    write(tmp_path / "data", {"train": [0, 1, 0, 1], "test": [0, 1, 1]})
    write(tmp_path / "data" / "small", {"train": [5, 6, 6, 6], "validation": [6, 5, 6]})
    data = load(tmp_path / "data", config="small", test_split="validation")
    assert len(data.label_names) == 7
    assert data.test["labels"].tolist() == [6, 5, 6]
    np.testing.assert_array_equal(data.test["pixel_values"].permute(0, 2, 3, 1), pixels("validation"))
    with pytest.raises(DataError, match=r"data\.test_split is 'train'"):
        Images("data", test_split="train")


def test_an_image_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, image in zip(("bee", "ant"), pixels(split), strict=False):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            (tmp_path / "data" / split / name / "0.png").write_bytes(encode(image))
    data = load(tmp_path / "data", image_column="image", label_column="label")
    assert data.label_names == ("ant", "bee")
    assert data.train["labels"].tolist() == [0, 1]
    np.testing.assert_array_equal(data.train["pixel_values"].permute(0, 2, 3, 1), pixels("train")[1::-1])
    (tmp_path / "data" / "test" / "ant" / "0.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"test image at row 0 \(.*ant/0.png\) cannot be decoded"):
        load(tmp_path / "data", image_column="image", label_column="label")


def test_cells_that_name_a_file_are_read_from_it(tmp_path: Path) -> None:
    """As the hub's image folders are prepared by `datasets`."""
    folder = write(tmp_path / "data", {"train": [0, 1, 0, 1], "test": [0, 1, 1]})
    files = [tmp_path / f"{row}.png" for row in range(4)]
    for file, image in zip(files, pixels("train"), strict=True):
        file.write_bytes(encode(image))
    named = [{"bytes": None, "path": str(file)} for file in files]
    pictures = pyarrow.array(named, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    table = pyarrow.table({"picture": pictures, "kind": pyarrow.array([0, 1, 0, 1])})
    parquet.write_table(table, folder / "train.parquet")  # `datasets` would write the images themselves
    data = load(folder)
    np.testing.assert_array_equal(data.train["pixel_values"].permute(0, 2, 3, 1), pixels("train"))


def test_sizes(tmp_path: Path) -> None:
    """Images are stored with one size and seen with another; crops are an eighth of what is stored."""
    folder = write(tmp_path / "data", {"train": [0, 1, 0, 1], "test": [0, 1, 1]})
    data = load(folder, image_size=24, stored_size=8)
    assert data.train["pixel_values"].shape == (4, 3, 8, 8)
    assert data.transform(data.train, None)["pixel_values"].shape == (4, 3, 24, 24)
    assert data.draw(np.random.default_rng(0), (9, 9))["crop"].unique().tolist() == [-1, 0, 1]
    assert load(folder, augment=False).draw(np.random.default_rng(0), (9, 9)) == {}
    for sizes in ({"image_size": 0}, {"stored_size": 2.0}, {"stored_size": 0}, {"image_size": True}):
        with pytest.raises(DataError, match=f"{next(iter(sizes))} is {next(iter(sizes.values()))!r}, expected a whole"):
            load(folder, **sizes)
    with pytest.raises(DataError, match="normalise is 'clip', expected half or imagenet"):
        load(folder, normalise="clip")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a.png"] * 3, "test column picture holds string, expected encoded images"),
        ([{"bytes": b"x", "path": None}] * 3, "test image at row 0 cannot be decoded"),
        ([{"bytes": None, "path": "/nowhere/a.png"}] * 3, "/nowhere/a.png cannot be read"),
        ([], "has no rows in test"),
    ],
)
def test_refuses_what_holds_no_images(tmp_path: Path, images: list, message: str) -> None:
    folder = write(tmp_path / "data", {"train": [0, 1, 0, 1]})
    columns = {"picture": images, "kind": [0, 1, 1][: len(images)]}
    Dataset.from_dict(columns).to_parquet(folder / "test.parquet")
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
