"""20 Newsgroups from files like the hub's, for both of its tasks, and the real files where they are at hand."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from data_partitions.dataset import FederatedData
from data_partitions.datasets.twenty_newsgroups import LABEL_NAMES, TwentyNewsgroups
from data_partitions.errors import DataError
from data_partitions.texts.tokens import NO_TOKEN, load_tokenizer
from tests.data_partitions.words import save_words

REAL = Path(__file__).resolve().parents[4] / "shared/data"
POSTS = {"train": [("the goalie saves", 10), ("orbit", 14), ("the engine rides fast " * 9, 8)], "test": [("ice", 10)]}


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, posts in POSTS.items():
        write(tmp_path, split, [{"text": t, "label": n, "label_text": LABEL_NAMES[n]} for t, n in posts])
    save_words(tmp_path / "words", words=("Newsgroup:", *LABEL_NAMES))
    return tmp_path


def load(folder: Path, **arguments: Any) -> FederatedData:
    whole: dict[str, Any] = {"path": str(folder), "tokenizer": str(folder / "words"), "cache": str(folder / "cache")}
    return TwentyNewsgroups(**(whole | arguments)).load()


def read(folder: Path, tokens: torch.Tensor) -> str:
    return load_tokenizer(str(folder / "words")).decode([t for t in tokens.tolist() if t != NO_TOKEN])


def test_for_a_head(folder: Path) -> None:
    data = load(folder, task="text_classification", max_length=8)
    assert data.train["input_ids"].shape == (3, 8)
    assert data.train["labels"].tolist() == [10, 14, 8]
    assert read(folder, data.train["input_ids"][2]) == "[start] the engine rides fast the engine rides"
    assert (data.label_names, data.task, data.pad_token_id) == (LABEL_NAMES, "text_classification", 0)
    np.testing.assert_array_equal(data.classes, [10, 14, 8])


def test_as_text(folder: Path) -> None:
    """Name and end of text are the last columns of the input; the post is cut, question and name never are."""
    data = load(folder, max_length=8)
    ids, labels = data.train["input_ids"], data.train["labels"]
    assert ids.shape == (3, 8)
    assert labels.shape == (3, 2)
    assert [read(folder, row) for row in ids] == [
        "[start] the goalie saves Newsgroup: rec.sport.hockey [end]",
        "[start] orbit Newsgroup: sci.space [end]",
        "[start] the engine rides fast Newsgroup: rec.motorcycles [end]",
    ]
    assert torch.equal(ids[:, -2:].long(), labels)
    assert (data.label_names, data.task) == (LABEL_NAMES, "text_to_text")
    np.testing.assert_array_equal(data.classes, [10, 14, 8])
    assert read(folder, data.test["input_ids"][0]) == "[start] ice Newsgroup: rec.sport.hockey [end]"


def test_the_answers_to_choose_from(folder: Path) -> None:
    """By likelihood the twenty names with their end, as they stand in the rows; for free writing none."""
    data = load(folder, max_length=8)
    assert data.choices is not None
    assert [read(folder, torch.from_numpy(row)) for row in data.choices] == [f"{name} [end]" for name in LABEL_NAMES]
    assert data.choices[[10, 14, 8]].tolist() == data.train["labels"].tolist()
    assert load(folder, scoring="generation").choices is None
    assert load(folder, task="text_classification").choices is None


def test_the_cut_of_a_post_does_not_tell_its_name(tmp_path: Path) -> None:
    """Names of one and of three tokens: two long posts keep the same tokens, whatever they are called."""
    same = "the engine rides fast " * 9
    for split in ("train", "test"):
        write(tmp_path, split, [{"text": same, "label": 0}, {"text": same, "label": 19}])
    parts = dict.fromkeys(part for name in LABEL_NAMES for part in name.split("."))
    save_words(tmp_path / "words", words=("Newsgroup:", *parts), between=r"[\s.]")
    data = load(tmp_path, max_length=14)
    labels, ids = data.train["labels"], data.train["input_ids"]
    assert (labels != -100).sum(1).tolist() == [3, 4]  # alt.atheism and talk.religion.misc, and the end of each
    width = labels.shape[1]
    assert torch.equal(ids[0, :-width], ids[1, :-width])
    assert ids.shape[1] == 14


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 20}], "train label 20 at row 0 is outside the expected 0 to 19"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": -1}], "train label -1 at row 1 is outside"),
        ([{"text": "a", "label": "sci.med"}], "train column label holds .*, expected integers 0 to 19"),
        ([{"text": 5, "label": 1}], "train column text holds int, expected texts"),
        ([{"text": "a", "label": None}], "train.jsonl.gz has no 'label' at row 0"),
        ([{"text": "a"}], "train.jsonl.gz has no column 'label', it has 'text'"),
        ([], "train.jsonl.gz has no column 'text', it has none"),
    ],
)
def test_refuses_malformed_rows(folder: Path, rows: list[dict[str, Any]], message: str) -> None:
    write(folder, "train", rows)
    with pytest.raises(DataError, match=message):
        load(folder)
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("task", ["text_classification", "text_to_text"])
def test_a_second_start_makes_no_tokens(folder: Path, task: str) -> None:
    load(folder, task=task)
    kept = {file: file.stat().st_mtime_ns for file in (folder / "cache").iterdir()}
    load(folder, task=task)
    assert {file: file.stat().st_mtime_ns for file in (folder / "cache").iterdir()} == kept
    assert len(kept) == 2


def test_refuses_other_names_of_labels(folder: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    for split in ("train", "test"):
        (folder / f"{split}.jsonl.gz").unlink()
        Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(folder / f"{split}.parquet")
    with pytest.raises(DataError, match=r"train, has 2 classes, label 0 being 'neg', expected 'alt.atheism'"):
        load(folder)


def test_a_broken_line_is_named(folder: Path) -> None:
    with gzip.open(folder / "test.jsonl.gz", "at") as file:
        file.write('{"text": "cut sh')
    with pytest.raises(DataError, match=r"test.jsonl.gz line 2 is no JSON"):
        load(folder)
    assert not (folder / "cache").exists()


def test_refuses_arguments(folder: Path) -> None:
    for length in (7, True, 8.0):
        with pytest.raises(DataError, match=rf"data.max_length is {length}, expected a whole number of at least 8"):
            TwentyNewsgroups(max_length=length)
    with pytest.raises(DataError, match=r"data.scoring is 'luck', expected likelihood or generation"):
        TwentyNewsgroups(scoring="luck")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data.tokenizer is missing"):
        load(folder, tokenizer=None)
    save_words(folder / "words", between=r"[\s.e]")  # two words to ask with, five in the longest name
    with pytest.raises(DataError, match=r"data.max_length is 8, expected at least 9 for question and name"):
        load(folder, max_length=8)


@pytest.mark.skipif(not (REAL / "20newsgroups").is_dir(), reason="the real 20 Newsgroups is not beside the checkout")
def test_the_real_files(tmp_path: Path) -> None:
    """Every post is there; a hundred of each split are read from the cache on a second start."""
    for split, count in (("train", 11314), ("test", 7532)):
        with gzip.open(REAL / f"20newsgroups/{split}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        assert len(rows) == count
        assert {row["label_text"] for row in rows if row["label"] == 11} == {LABEL_NAMES[11]}
        write(tmp_path, split, rows[::80])
    arguments = {"tokenizer": str(REAL / "models/stories260K"), "max_length": 64}
    first, second = (load(tmp_path, **arguments) for _ in range(2))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    for one, other in ((first.train, second.train), (first.test, second.test)):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert first.train["input_ids"].shape == (142, 64)
