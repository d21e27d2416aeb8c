"""Columns from files of every format and from a hub that is prepared, offline, silent or absent."""

import gzip
import json
import socket
import time
from pathlib import Path

import datasets
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, Value, config, load_dataset
from pyarrow import parquet

from data_partitions.errors import DataError
from data_partitions.reading.columns import find_files, load_columns
from data_partitions.texts.code_instructions import read_problems

ROWS = [{"text": "a, b\nc", "label": 1, "more": 0.5}, {"text": "", "label": 0, "more": None}]


def write(file: Path, rows: list[dict]) -> Path:
    """Writes rows in the format that the file's name asks for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if file.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    elif file.suffix == ".csv":
        Dataset.from_list(rows).to_csv(file)
    elif file.suffix == ".gz":
        file.write_bytes(gzip.compress(lines.encode()))
    else:
        file.write_text(lines)
    return file


def refusal(
    path: str | Path, split: str = "train", columns: tuple[str, ...] = ("text", "label"), config: str | None = None
) -> str:
    with pytest.raises(DataError) as caught:
        load_columns(str(path), split, columns, config=config)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.jsonl.gz", "train.csv"])
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ROWS)
    for path in (tmp_path, file):
        found = load_columns(str(path), "train", ("label", "text"))
        assert found.column_names == ["label", "text"]
        assert found[:] == {"label": [1, 0], "text": ["a, b\nc", ""]}


def test_shards_are_read_in_order_from_the_folder_or_one_below(tmp_path: Path) -> None:
    for number in (1, 0):
        write(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", [{"label": number}])
    write(tmp_path / "data" / "train-extra.parquet", [{"label": 7}])
    for path in (tmp_path, tmp_path / "data"):
        assert load_columns(str(path), "train", ["label"])["label"][:] == [0, 1]
    assert [file.name[:11] for file in find_files(str(tmp_path), "train")] == ["train-00000", "train-00001"]

    write(tmp_path / "other" / "train.csv", [{"label": 7}])
    assert "in 2 folders, data and other among them" in refusal(tmp_path)
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    assert "has 1 shards of a split in 2" in refusal(tmp_path / "data")


def test_a_configuration_is_the_folder_of_its_name_else_the_path_itself(tmp_path: Path) -> None:
    write(tmp_path / "sst2" / "train.jsonl.gz", [{"label": 2}])
    assert load_columns(str(tmp_path), "train", ["label"], config="sst2")["label"][:] == [2]
    assert load_columns(str(tmp_path / "sst2"), "train", ["label"], config="sst2")["label"][:] == [2]
    message = refusal(tmp_path, config="cola")  # what came so far is another configuration
    assert "has no file for the split train" in message
    assert "in it or in its folder cola: rename" in message
    assert f"{str(tmp_path / 'sst2')!r} has no file for the split test" in refusal(tmp_path, "test", config="sst2")

    write(tmp_path / "cola" / "data" / "train-0-of-1.jsonl", [{"label": 3}])
    assert load_columns(str(tmp_path), "train", ["label"], config="cola")["label"][:] == [3]
    write(tmp_path / "train.csv", [{"label": 1}])
    assert load_columns(str(tmp_path), "train", ["label"], config="sst2")["label"][:] == [2]
    assert load_columns(str(tmp_path), "train", ["label"], config="main")["label"][:] == [1]
    assert load_columns(str(tmp_path / "train.csv"), "train", ["label"], config="main")["label"][:] == [1]


def test_parquet_keeps_the_names_of_labels(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad"])})
    for number in range(2):
        shard = Dataset.from_dict({"text": ["a"], "label": [number]}, features=features)
        shard.to_parquet(tmp_path / f"train-{number}-of-2.parquet")
    assert load_columns(str(tmp_path), "train", ["label"]).features == Features({"label": features["label"]})


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "'~/absent' does not exist" in refusal("~/absent")
    assert "'./absent' does not exist" in refusal("./absent")
    assert "'absent' is no folder here and no hub id" in refusal("absent")
    message = refusal(tmp_path)
    assert "has no file for the split train, expected train.parquet or .jsonl" in message
    assert "or images as train/CLASS NAME/FILE.png: rename" in message
    file = write(tmp_path / "train.jsonl", ROWS)
    assert "has no file for the split test" in refusal(file, "test")  # one file is never both splits
    assert load_columns("~", "train", ["label"])["label"][:] == [1, 0]


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl.gz", "train.csv"])
def test_a_missing_column_or_value_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ROWS)
    message = refusal(tmp_path, columns=("text", "labels"))
    assert f"{name} has no column 'labels', it has 'text', 'label', 'more'" in message
    assert f"{name} has no 'more' at row 1" in refusal(tmp_path, columns=("more",))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": "a", "label": 1}\n\n{"text": "b", "label": \n', "train.jsonl line 3 is no JSON"),
        ('{"text": "a", "label": 1}\n[1]\n', "line 2 is a JSON list"),
        ('{"text": "a", "label": 1}\n{"text": "\\ud800", "label": 1}\n', "values in 'text' that make no column"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', "values in 'label' that make no column"),
        ('{"text": "a", "label": 1}\n{"text": "b"}\n', "no 'label' at row 1"),
        ("", "no column 'text', it has none"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(lines)
    assert message in refusal(tmp_path)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 1}\n')
    assert "line 2 is no JSON" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl.gz"])
def test_a_file_that_was_cut_short(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ROWS * 50)
    file.write_bytes(file.read_bytes()[:-20])
    assert f"{name} cannot be read" in refusal(tmp_path)
    file.write_bytes(b"nothing of the kind")
    assert f"{name} cannot be read" in refusal(tmp_path)
    file.write_bytes(b"")
    assert "\n" not in refusal(tmp_path)


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.csv"])
def test_an_optional_column_is_read_where_it_is_there(tmp_path: Path, name: str) -> None:
    """Behind the others, and once."""
    write(tmp_path / name, [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    found = load_columns(str(tmp_path), "train", ["text"], optional=("more", "label", "text"))
    assert found[:] == {"text": ["a", "b"], "label": [1, 0]}


def test_an_optional_column_that_a_row_lacks(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 0}\n')
    with pytest.raises(DataError, match=r"train.jsonl has no 'label' at row 0, expected a value in every row"):
        load_columns(str(tmp_path), "train", ["text"], optional=("label",))


@pytest.mark.parametrize("lacking", [0, 1])
def test_an_optional_column_that_a_shard_lacks(tmp_path: Path, lacking: int) -> None:
    for number in range(2):
        row = {"text": "a", "label": 1}
        write(tmp_path / f"train-{number}-of-2.jsonl", [{"text": "a"} if number == lacking else row])
    with pytest.raises(DataError, match=rf"train-{lacking}-of-2.jsonl has no column 'label', which another shard has"):
        load_columns(str(tmp_path), "train", ["text"], optional=("label",))


def test_messages_name_the_key_that_was_wrong(tmp_path: Path, prepared: Path) -> None:
    file = write(tmp_path / "given" / "test.jsonl", ROWS)
    for path in (str(file), str(tmp_path / "absent"), "absent", "tiny/absent"):
        with pytest.raises(DataError, match=f"^data.train_path '{path}'") as caught:
            load_columns(path, "train", ["text"], key="data.train_path")
        assert "data.path" not in str(caught.value)
    with pytest.raises(DataError, match=r"^data.train_path 'tiny/set' has no column 'labels'"):
        load_columns("tiny/set", "train", ["labels"], key="data.train_path")
    with pytest.raises(DataError, match=r"^data.train_path 'tiny/set' cannot be loaded .* --data.train_path FOLDER$"):
        load_columns("tiny/set", "absent", ["label"], key="data.train_path")
    with pytest.raises(DataError, match=r"^data.test_path './absent' does not exist"):
        read_problems("mbpp", "./absent", None)


def test_a_broken_csv(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,1,2\n")
    assert "train.csv cannot be read" in refusal(tmp_path)


def test_shards_of_different_types(tmp_path: Path) -> None:
    write(tmp_path / "train-0-of-2.jsonl", [{"label": 1}])
    write(tmp_path / "train-1-of-2.jsonl", [{"label": "x"}])
    assert "do not fit together" in refusal(tmp_path, columns=("label",))


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of `datasets` that holds tiny/set, as an earlier load from the hub would have left it."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    write(tmp_path / "set" / "train.parquet", ROWS)
    load_dataset(str(tmp_path / "set"), split="train")
    (info,) = (tmp_path / "cache").rglob("dataset_info.json")
    folder = tmp_path / "cache" / "tiny___set" / "default" / "0.0.0" / "0123"
    folder.parent.mkdir(parents=True)
    info.parent.rename(folder)
    return folder


def test_offline_mode_reads_what_was_prepared_and_asks_nobody(prepared: Path) -> None:
    assert load_columns("tiny/set", "train", ["label"])[:] == {"label": [1, 0]}
    assert "'tiny/set' has no column 'labels', it has 'text'" in refusal("tiny/set", columns=("labels",))
    assert "'tiny/set' cannot be loaded" in refusal("tiny/set", "absent")
    message = refusal("tiny/absent")
    assert "offline mode is on" in message
    assert "--data.path FOLDER" in message


def test_a_missing_value_of_the_hub_is_named(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Dataset.from_dict({"label": [1, None]}))
    assert "'tiny/set', train, has no 'label' at row 1" in refusal("tiny/set", columns=("label",))


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_a_column_that_stands_twice(tmp_path: Path, name: str) -> None:
    if name.endswith("csv"):
        (tmp_path / name).write_text("text,label,text\na,1,b\n")
    else:
        table = pyarrow.table([["a"], ["b"], [1]], names=["text", "text", "label"])
        parquet.write_table(table, tmp_path / name)
    assert f"{name} has the column 'text' twice, expected it once" in refusal(tmp_path, columns=("text",))


def test_a_configuration_of_the_hub(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = prepared.parents[2] / "named" / "0.0.0" / "0123"
    named.parent.mkdir(parents=True)
    prepared.rename(named)
    info = named / "dataset_info.json"
    info.write_text(info.read_text().replace('"config_name": "default"', '"config_name": "named"'))
    assert load_columns("tiny/set", "train", ["label"], config="named")[:] == {"label": [1, 0]}
    assert "Couldn't find cache for tiny/set for config 'other'" in refusal("tiny/set", config="other")

    asked = []

    def answer(*arguments: object, **options: object) -> Dataset:
        asked.append((arguments, options))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    for name in (None, "sst2"):
        assert load_columns("nyu-mll/glue", "validation", ["label"], config=name).column_names == ["label"]
    assert asked == [(("nyu-mll/glue", name), {"split": "validation"}) for name in (None, "sst2")]


def test_a_silent_hub_is_given_three_seconds(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, `datasets` would retry for 23 seconds even for what it has prepared."""
    from huggingface_hub import constants

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(config, "HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        message = refusal("tiny/absent")
        assert time.monotonic() - start < 15  # and not 23, on a busy machine either
    assert "--data.path FOLDER" in message
    assert config.HF_HUB_OFFLINE is False
    # Now nobody listens there at all.
    assert load_columns("tiny/set", "train", ["label"])[:] == {"label": [1, 0]}
    assert "--data.path FOLDER" in refusal("tiny/absent")
