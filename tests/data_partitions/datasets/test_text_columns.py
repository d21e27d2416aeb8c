"""Texts by the names of their columns: every task, labels of every kind, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from data_partitions.dataset import FederatedData
from data_partitions.datasets.text_columns import Texts
from data_partitions.errors import DataError
from data_partitions.reading.labels import MOST_LABELS
from data_partitions.texts.tokens import NO_TOKEN, load_tokenizer
from tests.data_partitions.words import save_words

TRAIN = [
    {"body": "the goalie saves", "topic": "sport", "who": "b"},
    {"body": "orbit", "topic": "space", "who": "a"},
    {"body": "the moon", "topic": "space", "who": "b"},
]
TEST = [{"body": "ice", "topic": "sport"}, {"body": "", "topic": "space"}]


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "test", TEST)
    save_words(tmp_path / "words", words=("sport", "space", "about:"))
    return tmp_path


def load(folder: Path, **arguments: Any) -> FederatedData:
    whole: dict[str, Any] = {"path": str(folder), "tokenizer": str(folder / "words"), "cache": str(folder / "cache")}
    return Texts(**(whole | {"text_column": "body", "label_column": "topic"} | arguments)).load()


def labelled(folder: Path, train: list[Any], test: list[Any]) -> FederatedData:
    for split, labels in (("train", train), ("test", test)):
        write(folder, split, [{"body": "moon", "topic": label} for label in labels])
    return load(folder)


def read(folder: Path, tokens: torch.Tensor) -> list[str]:
    tokenizer = load_tokenizer(str(folder / "words"))
    return [tokenizer.decode([token for token in row if token != NO_TOKEN]) for row in tokens.tolist()]


def test_for_a_head(folder: Path) -> None:
    """Names are numbered as they sort; nobody is named as the writer unless asked for."""
    data = load(folder)
    assert (data.task, data.label_names, data.user) == ("text_classification", ("space", "sport"), None)
    assert data.train["labels"].tolist() == data.classes.tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert data.test["labels"].tolist() == [1, 0]
    assert data.train["labels"].dtype == torch.int64
    assert read(folder, data.train["input_ids"]) == ["[start] the goalie saves", "[start] orbit", "[start] the moon"]
    assert read(folder, data.test["input_ids"]) == ["[start] ice", "[start]"]
    assert (data.choices, data.pad_token_id) == (None, 0)


def test_as_text(folder: Path) -> None:
    data = load(folder, task="text_to_text", question=" about:", max_length=9)
    assert (data.task, data.label_names) == ("text_to_text", ("space", "sport"))
    assert data.classes.tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert read(folder, data.train["input_ids"])[:2] == [
        "[start] the goalie saves about: sport [end]",
        "[start] orbit about: space [end]",
    ]
    assert read(folder, data.test["input_ids"])[1] == "[start] about: space [end]"
    assert data.choices is not None
    assert read(folder, torch.from_numpy(data.choices)) == ["space [end]", "sport [end]"]
    assert load(folder, task="text_to_text", scoring="generation").choices is None


def test_to_be_continued(folder: Path) -> None:
    """Labels serve partitioners alone: the test split needs none, and neither does training."""
    write(folder, "test", [{"body": "ice"}, {"body": ""}])
    data = load(folder, task="language_modelling")
    assert (data.task, data.label_names, set(data.train)) == ("language_modelling", (), {"input_ids"})
    assert data.classes.tolist() == [1, 0, 0]  # type: ignore[union-attr]
    data = load(folder, task="language_modelling", label_column=None)
    assert data.classes.tolist() == [0, 0, 0]  # type: ignore[union-attr]
    assert read(folder, data.train["input_ids"])[1] == "[start] orbit"


def test_users(folder: Path) -> None:
    """Names or integers, of training alone: the test split has no such column."""
    np.testing.assert_array_equal(load(folder, user_column="who").user, ["b", "a", "b"])
    write(folder, "train", [{**row, "who": number} for number, row in enumerate(TRAIN, 7)])
    np.testing.assert_array_equal(load(folder, user_column="who").user, [7, 8, 9])
    write(folder, "train", [{**row, "who": 0.5} for row in TRAIN])
    with pytest.raises(
        DataError, match=r"train column who holds double, expected names or integers.*--data.user_column"
    ):
        load(folder, user_column="who")


def test_pairs(folder: Path) -> None:
    """A head reads the tokenizer's own pair; a language model the second text on a new line."""
    for split, rows in (("train", TRAIN), ("test", TEST)):
        write(folder, split, [{**row, "reply": "fast"} for row in rows])
    tokenizer = load_tokenizer(str(folder / "words"))
    data = load(folder, second_text_column="reply")
    assert data.train["input_ids"][0].tolist() == tokenizer("the goalie saves", "fast")["input_ids"]
    data = load(folder, second_text_column="reply", task="text_to_text", question=" about:")
    assert read(folder, data.train["input_ids"])[1] == "[start] orbit fast about: space [end]"
    data = load(folder, second_text_column="reply", task="language_modelling")
    assert data.train["input_ids"][0].tolist() == tokenizer("the goalie saves\nfast")["input_ids"]


def test_integers_are_the_labels_numbers(folder: Path) -> None:
    """Up to the largest in training; one in between may have no example there."""
    data = labelled(folder, [2, 0, 2], [0, 2])
    assert data.label_names == ("0", "1", "2")
    assert [data.train["labels"].tolist(), data.test["labels"].tolist()] == [[2, 0, 2], [0, 2]]


def test_declared_names_allow_a_class_without_training_examples(folder: Path) -> None:
    features = Features({"body": Value("string"), "topic": ClassLabel(names=["sport", "space", "music"])})
    for split, labels in (("train", [1, 0]), ("test", [2, 1])):
        (folder / f"{split}.jsonl").unlink()
        rows = {"body": ["moon", "ice"], "topic": labels}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    data = load(folder)
    assert data.label_names == ("sport", "space", "music")
    assert [data.train["labels"].tolist(), data.test["labels"].tolist()] == [[1, 0], [2, 1]]
    choices = load(folder, task="text_to_text").choices
    assert choices is not None
    assert len(choices) == 3
    other = Features({"body": Value("string"), "topic": ClassLabel(names=["space", "sport", "music"])})
    Dataset.from_dict(rows, features=other).to_parquet(folder / "test.parquet")
    with pytest.raises(DataError, match=r"test has 3 classes, label 0 being 'space', expected 'sport'"):
        load(folder)


def test_a_configuration_and_another_test_split(folder: Path) -> None:
    (folder / "small").mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").rename(folder / "small" / f"{'dev' if split == 'test' else split}.jsonl")
    assert load(folder, config="small", test_split="dev").test["labels"].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"no file for the split test"):
        load(folder, config="small")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", 1], ["a"], r"train.jsonl has values in 'topic' that make no column .* expected values of one type"),
        (["a", "b"], [0], r"test column topic holds integers, expected names as in train: write them alike"),
        ([0, 1], ["0"], r"test column topic holds names, expected integers as in train"),
        (["a", None], ["a"], r"train.jsonl has no 'topic' at row 1"),
        (["a", "b"], ["b", ""], r"test column topic is empty at row 1, expected a name"),
        (["a", "b"], ["b", "c"], r"test label 'c' at row 1 has no example in train, expected one of its 2 labels"),
        ([0, 2], [0, 1], r"test label 1 at row 1 has no example in train"),
        ([0, 2], [3], r"test label 3 at row 0 has no example in train"),
        ([0, -1], [0], r"train label -1 at row 1 is outside the expected 0 to 99999"),
        ([0, MOST_LABELS], [0], r"train label 100000 at row 1 is outside the expected 0 to 99999"),
        ([0.5, 1.5], [0], r"train column topic holds double, expected names or integers"),
        ([True, False], [True], r"train column topic holds bool, expected names or integers"),
        (["a", "a"], ["a"], r"train has the one label 'a', expected two at least"),
    ],
)
def test_refuses_labels(folder: Path, train: list[Any], test: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        labelled(folder, train, test)
    assert not (folder / "cache").exists()


def test_refuses_rows_and_arguments(folder: Path) -> None:
    for arguments, message in (
        ({"text_column": "text"}, r"no column 'text', it has 'body', 'topic', 'who'"),
        ({"second_text_column": "reply"}, r"no column 'reply'"),
        ({"user_column": "author"}, r"no column 'author'"),
        ({"label_column": None}, r"data.label_column is missing, expected the labels' column for text_classification"),
        ({"test_split": "train"}, r"data.test_split is 'train', which is trained on: give another split"),
        ({"task": "guessing"}, r"data.task is 'guessing', expected text_classification, text_to_text, language_mod"),
        ({"scoring": "luck"}, r"data.scoring is 'luck', expected likelihood or generation"),
        ({"max_length": 7}, r"data.max_length is 7, expected a whole number of at least 8"),
        ({"tokenizer": None}, r"data.tokenizer is missing"),
    ):
        with pytest.raises(DataError, match=message):
            load(folder, **arguments)
    write(folder, "test", [{"body": 5, "topic": "space"}])
    with pytest.raises(DataError, match=r"test column body holds int, expected texts"):
        load(folder)
    Dataset.from_dict({"body": [], "topic": []}).to_parquet(folder / "test.parquet")
    with pytest.raises(DataError, match=r"has no rows in test, expected at least one"):
        load(folder)
