"""GLUE's tasks from small written files, each in its own columns, and slices of the real files."""

import gzip
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from data_partitions.dataset import FederatedData
from data_partitions.datasets.glue import GLUE, TASKS
from data_partitions.errors import DataError
from data_partitions.texts.tokens import NO_TOKEN, load_tokenizer
from tests.data_partitions.words import save_words

REAL = Path(__file__).resolve().parents[4] / "shared/data"
ROWS = {
    "sst2": {"sentence": "the goalie saves"},
    "mrpc": {"sentence1": "the goalie saves", "sentence2": "ice"},
    "rte": {"sentence1": "the goalie saves", "sentence2": "ice"},
    "cola": {"sentence": "the goalie saves"},
    "qnli": {"question": "the goalie saves", "sentence": "ice"},
    "mnli": {"premise": "the goalie saves", "hypothesis": "ice"},
    "qqp": {"question1": "the goalie saves", "question2": "ice"},
}
LABELS = {"train": [1, 0, 1], "validation": [0, 1]}
CASES = {
    "sst2": (("negative", "positive"), ("accuracy",)),
    "mrpc": (("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "rte": (("entailment", "not_entailment"), ("accuracy",)),
    "cola": (("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "qnli": (("entailment", "not_entailment"), ("accuracy",)),
    "mnli": (("entailment", "neutral", "contradiction"), ("accuracy",)),
    "qqp": (("not_duplicate", "duplicate"), ("f1", "accuracy")),
}
"""The names of labels and the metrics of each task, by the GLUE paper's Table 1."""


def write(folder: Path, task: str, split: str, labels: list[int]) -> None:
    (folder / task).mkdir(exist_ok=True)
    rows = [{**ROWS[task], "label": label, "idx": number} for number, label in enumerate(labels)]
    with gzip.open(folder / task / f"{split}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task in TASKS:
        for split, labels in LABELS.items():
            write(tmp_path, task, split, labels)
    save_words(tmp_path / "words")
    return tmp_path


def load(folder: Path, task: str, **arguments: Any) -> FederatedData:
    whole: dict[str, Any] = {"path": str(folder), "tokenizer": str(folder / "words"), "cache": str(folder / "cache")}
    return GLUE(task, **(whole | arguments)).load()  # type: ignore[arg-type]


def test_there_are_seven_tasks() -> None:
    assert set(TASKS) == set(CASES) == set(ROWS)


@pytest.mark.parametrize("task", CASES)
def test_a_task(folder: Path, task: str) -> None:
    data = load(folder, task)
    assert (data.label_names, data.metrics) == CASES[task]
    assert (data.task, data.pad_token_id, data.user) == ("text_classification", 0, None)
    assert [data.train["labels"].tolist(), data.test["labels"].tolist()] == [*LABELS.values()]
    tokenizer = load_tokenizer(str(folder / "words"))
    expected = tokenizer(*ROWS[task].values())["input_ids"]
    for split in (data.train, data.test):
        assert split["input_ids"].tolist() == [expected] * len(split["labels"])


def test_a_pair_is_cut_as_one(folder: Path) -> None:
    long = {"premise": "moon " * 90, "hypothesis": "the goalie"}
    with gzip.open(folder / "mnli/train.jsonl.gz", "wt") as file:
        file.write(json.dumps({**long, "label": 2}) + "\n")
    ids = load(folder, "mnli", max_length=12).train["input_ids"][0]
    assert len(ids) == 12
    assert ids[-2:].tolist() == [4, 5]  # the short second sentence is whole
    assert load(folder, "mnli").train["input_ids"].shape == (1, 92)


def test_mnli_has_two_validation_splits(folder: Path) -> None:
    """As in a clone from the hub, matched unless asked for; a folder with the one split has that as the matched one."""
    assert load(folder, "mnli").test["labels"].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"no file for the split validation_mismatched"):
        load(folder, "mnli", mismatched=True)
    (folder / "mnli/validation.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"no file for the split validation_matched"):
        load(folder, "mnli")
    write(folder, "mnli", "validation_matched", [2, 2])
    write(folder, "mnli", "validation_mismatched", [1, 1, 1])
    assert load(folder, "mnli").test["labels"].tolist() == [2, 2]
    assert load(folder, "mnli", mismatched=True).test["labels"].tolist() == [1, 1, 1]


def test_the_hub_is_asked_for_the_task_and_its_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_from_hub(path: str, config: str | None, split: str, key: str) -> Dataset:
        asked.append((path, config, split))
        return Dataset.from_list([{**ROWS[str(config)], "label": 0, "idx": 0}])

    monkeypatch.setattr("data_partitions.reading.columns.load_from_hub", load_from_hub)
    for task, more in (("qqp", {}), ("mnli", {}), ("mnli", {"mismatched": True})):
        load(folder, task, path="nyu-mll/glue", **more)
    assert {path for path, _, _ in asked} == {"nyu-mll/glue"}
    assert [(config, split) for _, config, split in asked if split != "train"] == [
        ("qqp", "validation"),
        ("mnli", "validation_matched"),
        ("mnli", "validation_mismatched"),
    ]


def test_hidden_labels_are_refused(folder: Path) -> None:
    """GLUE's test split, saved as another one."""
    write(folder, "rte", "validation", [-1, -1])
    with pytest.raises(DataError, match=r"validation label -1 at row 0 .* a label that GLUE hides, give a split with"):
        load(folder, "rte")
    assert not (folder / "cache").exists()


def test_other_data_are_refused(folder: Path) -> None:
    write(folder, "sst2", "train", [0, 2])
    with pytest.raises(DataError, match=r"train label 2 at row 1 is outside the expected 0 to 1"):
        load(folder, "sst2")
    shutil.rmtree(folder / "cola")
    shutil.copytree(folder / "mrpc", folder / "cola")
    with pytest.raises(DataError, match=r"no column 'sentence', it has 'sentence1', 'sentence2'"):
        load(folder, "cola")
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["positive", "negative"])})
    (folder / "sst2/train.jsonl.gz").unlink()
    Dataset.from_dict({"sentence": ["a"], "label": [0]}, features=features).to_parquet(folder / "sst2/train.parquet")
    with pytest.raises(DataError, match=r"train, has 2 classes, label 0 being 'positive', expected 'negative'"):
        load(folder, "sst2")


def test_the_folder_of_another_task_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RTE has MRPC's columns, and as many labels; the task's own folder counts, also inside such a one."""
    for path in (folder / "rte", f"{folder / 'rte'}/"):
        with pytest.raises(DataError, match=r"rte/?' is the folder of rte, expected that of data.task mrpc") as caught:
            load(folder, "mrpc", path=str(path))
        assert "\n" not in str(caught.value)
    monkeypatch.chdir(folder / "rte")
    with pytest.raises(DataError, match=r"data.path '\.' is the folder of rte"):
        load(folder, "mrpc", path=".")
    assert load(folder, "mrpc", path=str(folder / "mrpc")).test["labels"].tolist() == LABELS["validation"]
    shutil.copytree(folder / "mrpc", folder / "rte/mrpc")
    assert load(folder, "mrpc", path=str(folder / "rte")).test["labels"].tolist() == LABELS["validation"]


def test_refuses_arguments(folder: Path) -> None:
    for arguments, message in (
        ({"task": "stsb"}, r"data.task is 'stsb', expected sst2, mrpc, rte, cola, qnli, mnli, qqp"),
        ({"task": "rte", "mismatched": True}, r"data.mismatched is given for rte, expected mnli"),
        ({"max_length": 7}, r"data.max_length is 7, expected a whole number of at least 8: give e.g. 128"),
    ):
        with pytest.raises(DataError, match=message):
            GLUE(**arguments)
    with pytest.raises(DataError, match=r"data.tokenizer is missing"):
        load(folder, "sst2", tokenizer=None)


@pytest.mark.skipif(not (REAL / "glue").is_dir(), reason="the real GLUE is not beside the checkout")
@pytest.mark.parametrize("task", CASES)
def test_the_real_files(tmp_path: Path, task: str) -> None:
    """The first 50 rows of each split have the expected columns and labels, and every sentence says something."""
    (tmp_path / task).mkdir()
    for split in LABELS:
        with gzip.open(REAL / f"glue/{task}/{split}.jsonl.gz", "rt") as file:
            rows = list(islice(file, 50))
        (tmp_path / task / f"{split}.jsonl").write_text("".join(rows))
    data = load(tmp_path, task, tokenizer=str(REAL / "models/stories260K"))
    for split in (data.train, data.test):
        assert set(split["labels"].tolist()) == set(range(len(data.label_names)))
        tokens = (split["input_ids"] != NO_TOKEN).sum(1)
        assert tokens.min() > 3
        assert tokens.max() <= 128
