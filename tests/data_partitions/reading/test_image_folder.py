"""Image folders as users have them, and what may be wrong with them."""

import os
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageFeature

from data_partitions.errors import DataError
from data_partitions.reading.columns import find_files, load_columns


def write(root: Path, *files: str) -> Path:
    """Writes files whose content is their own name."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(
        tmp_path, "train/dog/b.JPG", "train/dog/a.png", "train/cat/c.webp", "train/Emu/d.bmp", "test/dog/e.jpeg"
    )


def contents(root: Path, split: str, config: str | None = None) -> list[tuple[str, int]]:
    table = load_columns(str(root), split, ("img", "label"), config=config).with_format("arrow")[:]
    return [(row["img"]["bytes"].decode(), row["label"]) for row in table.to_pylist()]


def refusal(root: Path, split: str = "train", columns: tuple[str, ...] = ("img", "label")) -> str:
    with pytest.raises(DataError) as caught:
        load_columns(str(root), split, columns)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_labels_number_the_sorted_class_folders_of_train(folder: Path) -> None:
    rows = [("train/Emu/d.bmp", 0), ("train/cat/c.webp", 1), ("train/dog/a.png", 2), ("train/dog/b.JPG", 2)]
    assert contents(folder, "train") == rows
    assert contents(folder, "test") == [("test/dog/e.jpeg", 2)]
    found = load_columns(str(folder), "test", ("label", "image"))
    assert found.column_names == ["label", "image"]
    assert found.features == Features({"label": ClassLabel(names=["Emu", "cat", "dog"]), "image": ImageFeature()})
    (cell,) = found.with_format("arrow")[:]["image"].to_pylist()
    assert cell == {"bytes": b"test/dog/e.jpeg", "path": str(folder / "test/dog/e.jpeg")}
    assert find_files(str(folder), "test") == [folder / "test"]


def test_the_same_labels_as_datasets_gives(folder: Path) -> None:
    streamed = load_dataset(
        "imagefolder", data_dir=str(folder), split="train", streaming=True, cache_dir=str(folder / ".cache")
    )
    examples = streamed.cast_column("image", ImageFeature(decode=False))
    theirs = sorted((example["image"]["path"], example["label"]) for example in examples)
    ours = load_columns(str(folder), "train", ("img", "label")).with_format("arrow")[:].to_pylist()
    assert sorted((row["img"]["path"], row["label"]) for row in ours) == theirs


def test_it_may_lie_in_the_folder_of_a_configuration(folder: Path) -> None:
    write(folder, "tiny/train/cat/x.png")
    assert contents(folder, "train", config="tiny") == [("tiny/train/cat/x.png", 0)]
    assert len(contents(folder, "train", config="main")) == 4


def test_files_win_over_image_folders(folder: Path) -> None:
    Dataset.from_dict({"img": [{"bytes": b"x", "path": None}], "label": [7]}).to_parquet(folder / "train.parquet")
    assert contents(folder, "train") == [("x", 7)]
    assert contents(folder, "test") == [("test/dog/e.jpeg", 2)]


def test_a_class_may_be_empty_and_hidden_files_are_passed_over(folder: Path) -> None:
    write(folder, ".DS_Store", "train/.DS_Store", "train/dog/._a.png", "train/dog/Thumbs.db", "train/.cache/x.png")
    write(folder, "test/__MACOSX/x.png", "test/desktop.ini")
    (folder / "train" / "ant").mkdir()
    (folder / "test" / "ant").mkdir()
    assert [label for _, label in contents(folder, "train")] == [0, 2, 3, 3]
    assert contents(folder, "test") == [("test/dog/e.jpeg", 3)]
    (folder / "test" / "dog" / "e.jpeg").unlink()
    assert contents(folder, "test") == []


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("test/fox/x.png", "test/fox is a class that {folder}/train lacks"),
        ("test/dog/x.txt", "test/dog/x.txt is no image by its name, expected only .jpg, .jpeg, .png"),
        ("test/dog/x.png.part", "test/dog/x.png.part is no image"),
        ("test/dog/puppy/x.png", "test/dog/puppy is no image"),
        ("test/dog/x.png/y.png", "test/dog/x.png cannot be read (Is a directory)"),
        ("test/metadata.csv", "test/metadata.csv lies beside class folders"),
        ("validation/x.png", "has no file for the split validation, expected validation.parquet"),
    ],
)
def test_what_is_no_image_folder_is_named(folder: Path, file: str, message: str) -> None:
    write(folder, file)
    assert message.format(folder=folder) in refusal(folder, file.split("/")[0])


def test_labels_need_the_folder_of_train(folder: Path) -> None:
    os.rename(folder / "train", folder / "training")
    assert f"{folder}/train holds no class folders, expected train/CLASS NAME/FILE.png" in refusal(folder, "test")
    assert "has no file for the split train" in refusal(folder)


def test_other_columns_and_files_that_cannot_be_read(folder: Path) -> None:
    message = refusal(folder, columns=("text", "label"))
    assert f"{folder}/train has no column 'text', it has 'img', 'image', 'label'" in message
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    assert "train/cat/gone.png cannot be read (No such file or directory)" in refusal(folder)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/train/caf\xe9")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (tmp_path / "train" / os.fsdecode(b"caf\xe9") / "a.png").write_bytes(b"x")
    assert contents(tmp_path, "train") == [("x", 0)]
