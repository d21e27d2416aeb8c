"""Reddit from posts by user and from LEAF's folder: who wrote what, what is held out, left out and kept."""

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from data_partitions.dataset import FederatedData
from data_partitions.datasets.reddit import Reddit
from data_partitions.errors import DataError
from data_partitions.reading.posts import Posts, hold_out_last_tenth, most_frequent, take_evenly
from data_partitions.texts.tokens import NO_TOKEN, load_tokenizer
from tests.data_partitions.reading.test_leaf import comments, save_leaf
from tests.data_partitions.words import WORDS, save_words

REAL = Path(__file__).resolve().parents[4] / "shared/data"
Row = dict[str, Any]


def write(file: Path, rows: list[Row]) -> None:
    with gzip.open(file, "wt") if file.suffix == ".gz" else file.open("wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def posts_of(sizes: dict[str, int]) -> list[Row]:
    """Posts of several users, dealt in turns; a user's number i says word i."""
    turns = range(max(sizes.values()))
    return [{"user_id": user, "text": WORDS[i]} for i in turns for user, size in sizes.items() if i < size]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return save_words(tmp_path / "words")


def load(path: Path | str, words: Path, **arguments: Any) -> FederatedData:
    return Reddit(str(path), tokenizer=str(words), cache=str(words / "cache"), **arguments).load()


def known(data: FederatedData) -> tuple[list[Any], list[int]]:
    """Who wrote each training post, and its class."""
    assert data.user is not None
    assert data.classes is not None
    return data.user.tolist(), data.classes.tolist()


def said(words: Path, column: torch.Tensor) -> list[str]:
    """The texts of a column, without the token that starts each."""
    tokenizer = load_tokenizer(str(words))
    rows = [[token for token in row.tolist() if token != NO_TOKEN] for row in column]
    return [tokenizer.decode(row).removeprefix("[start] ") for row in rows]


def test_each_users_last_tenth_is_held_out_in_the_order_of_the_file(tmp_path: Path, words: Path) -> None:
    write(tmp_path / "train.jsonl", posts_of({"ann": 10, "bob": 2, "cat": 1}))
    data = load(tmp_path, words)
    assert known(data) == (["ann", "bob", "cat", *["ann"] * 8], [0] * 11)
    assert said(words, data.train["input_ids"]) == ["the", "the", "the", *WORDS[1:9]]
    assert said(words, data.test["input_ids"]) == ["goalie", "ice"]
    assert (data.task, data.label_names, data.pad_token_id) == ("language_modelling", (), 0)
    assert set(data.train) == set(data.test) == {"input_ids"}
    assert data.train["input_ids"].dtype == torch.int32


def test_times_say_which_are_the_last(tmp_path: Path, words: Path) -> None:
    """Numbers, numbers in quotes and times; equal ones in the file's order. Classes are subreddits by name."""
    rows = [
        {"user_id": 7, "text": "moon", "subreddit": "b", "created": 1000},
        {"user_id": 7, "text": "orbit", "subreddit": "a", "created": 300},
        {"user_id": 7, "text": "launch", "subreddit": "b", "created": 1000},
        {"user_id": 8, "text": "ice", "subreddit": "c", "created": 50},
        {"user_id": 8, "text": "goalie", "subreddit": "c", "created": 6},
    ]
    for times in ([row["created"] for row in rows], [str(row["created"]) for row in rows]):
        write(tmp_path / "train.jsonl.gz", [row | {"created": time} for row, time in zip(rows, times, strict=True)])
        data = load(tmp_path / "train.jsonl.gz", words)
        assert said(words, data.test["input_ids"]) == ["launch", "ice"]
        assert said(words, data.train["input_ids"]) == ["moon", "orbit", "goalie"]
        assert known(data) == ([7, 7, 8], [1, 0, 2])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pyarrow.table(columns | {"created": pyarrow.array(columns["created"], pyarrow.timestamp("s"))})
    (tmp_path / "other").mkdir()
    parquet.write_table(table.rename_columns(["who", "body", "place", "when"]), tmp_path / "other" / "train.parquet")
    names = {"user_column": "who", "text_column": "body", "subreddit_column": "place", "created_column": "when"}
    assert said(words, load(tmp_path / "other", words, **names).test["input_ids"]) == ["launch", "ice"]
    # By another name the times are not there, and the file's order counts.
    names["created_column"] = "created"
    assert said(words, load(tmp_path / "other", words, **names).test["input_ids"]) == ["launch", "goalie"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=80))
def test_what_is_held_out_is_later_than_what_is_not(rows: list[tuple[int, int]]) -> None:
    users, times = (np.array(column) for column in zip(*rows, strict=True))
    numbers = [str(row) for row in range(len(rows))]
    train, test = hold_out_last_tenth(Posts(numbers, users, created=times))
    kept, held = ([int(text) for text in part.texts] for part in (train, test))
    assert sorted(kept + held) == list(range(len(rows)))
    assert (kept, held) == (sorted(kept), sorted(held))
    for user in set(users.tolist()):
        first, last = ([(times[row], row) for row in part if users[row] == user] for part in (kept, held))
        count = len(first) + len(last)
        assert len(last) == (0 if count == 1 else max(1, count // 10))
        assert not last or max(first) < min(last)


def test_what_says_nothing_is_left_out_before_anything_is_held_out(tmp_path: Path, words: Path) -> None:
    texts = ["moon", "", " [deleted]", "ice", "[removed]\n", "  "]
    rows = [{"user_id": "ann", "text": text} for text in texts] + [{"user_id": "[deleted]", "text": "fast"}]
    write(tmp_path / "train.jsonl", rows)
    data = load(tmp_path, words)
    assert (said(words, data.train["input_ids"]), said(words, data.test["input_ids"])) == (["moon"], ["ice"])


def test_a_test_file_is_taken_as_it_is(tmp_path: Path, words: Path) -> None:
    write(tmp_path / "train.jsonl", posts_of({"ann": 3}))
    write(tmp_path / "test.jsonl.gz", [{"user_id": "dan", "text": "fast"}, {"user_id": "ann", "text": "[removed]"}])
    data = load(tmp_path, words)
    assert (len(data.train["input_ids"]), said(words, data.test["input_ids"])) == (3, ["fast"])
    assert len(load(tmp_path / "train.jsonl", words).train["input_ids"]) == 2, "a file alone has no test beside it"


def test_leafs_folder(tmp_path: Path, words: Path) -> None:
    """Test users need not be those of the training split; without a test split it is each user's last."""
    train = {"1": comments(("the moon", "b"), ("ice", "a")), "2": comments(("orbit", "b"), ("fast", "b"))}
    save_leaf(tmp_path, "train", "reddit_0_train.json", train)
    data = load(tmp_path, words)
    assert said(words, data.test["input_ids"]) == ["ice", "fast"]
    save_leaf(tmp_path, "test", "reddit_0_test.json", {"3": comments(("launch", "c")), "2": comments()})
    save_leaf(tmp_path, "val", "reddit_0_val.json", {"1": comments(("goalie", "a"))})
    data = load(tmp_path, words)
    assert said(words, data.train["input_ids"]) == ["the moon", "ice", "orbit", "fast"]
    assert said(words, data.test["input_ids"]) == ["launch"]
    assert known(data) == (["1", "1", "2", "2"], [1, 0, 1, 1])


def test_limits_on_users(tmp_path: Path, words: Path) -> None:
    """Users are counted by their training posts, and go with their test posts; those of nobody else do."""
    write(tmp_path / "train.jsonl", posts_of({"ann": 1, "bob": 3, "cat": 2, "dan": 3}))
    write(tmp_path / "test.jsonl", posts_of({"dan": 1, "ann": 1, "eve": 1, "bob": 1}))
    for limits, users, tests in (
        ({}, {"ann", "bob", "cat", "dan"}, 4),
        ({"min_posts": 2}, {"bob", "cat", "dan"}, 3),
        ({"max_users": 2}, {"ann", "bob"}, 3),
        ({"min_posts": 2, "max_users": 1}, {"bob"}, 2),
    ):
        data = load(tmp_path, words, **limits)
        assert (set(known(data)[0]), len(data.test["input_ids"])) == (users, tests)
        assert len(data.train["input_ids"]) == len(known(data)[0])
    with pytest.raises(DataError, match=r"data.min_posts is 4, expected at most 3, the most of any user"):
        load(tmp_path, words, min_posts=4)


def test_a_cap_on_test_posts_takes_them_at_equal_distances(tmp_path: Path, words: Path) -> None:
    write(tmp_path / "train.jsonl", posts_of({"ann": 2}))
    write(tmp_path / "test.jsonl", posts_of({"bob": 10}))
    assert said(words, load(tmp_path, words, max_test_examples=4).test["input_ids"]) == [WORDS[i] for i in (0, 2, 5, 7)]
    posts = Posts(WORDS, np.zeros(len(WORDS), dtype=int))
    assert take_evenly(posts, 10) is take_evenly(posts, None) is take_evenly(posts, 99) is posts


def test_the_most_frequent_first_and_equals_by_name() -> None:
    assert most_frequent(np.array(["b", "c", "a", "c", "b", "d"]), 3).tolist() == ["b", "c", "a"]


def test_posts_are_cut_and_tokens_kept(tmp_path: Path, words: Path) -> None:
    rows = [{"user_id": "ann", "text": " ".join(WORDS)}] * 2 + [{"user_id": "bob", "text": "moon"}]
    write(tmp_path / "train.jsonl", rows)
    data = load(tmp_path, words, max_length=8)
    assert data.train["input_ids"].shape == (2, 8)
    assert data.train["input_ids"][1].tolist()[2:] == [NO_TOKEN] * 6
    batch = data.transform({"input_ids": data.train["input_ids"]}, None)
    assert batch["attention_mask"].sum(1).tolist() == [8, 2]
    kept = {file: file.stat().st_mtime_ns for file in (words / "cache").iterdir()}
    again = load(tmp_path, words, max_length=8)
    assert {file: file.stat().st_mtime_ns for file in (words / "cache").iterdir()} == kept
    assert torch.equal(again.train["input_ids"], data.train["input_ids"])


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_a_hub_id(tmp_path: Path, words: Path, splits: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepared on an earlier day, with and without a test split."""
    for split in splits:
        write(tmp_path / f"{split}.jsonl", posts_of({"ann": 3, "bob": 2}))
    real, kept = datasets.load_dataset, str(tmp_path / "prepared")
    files = {split: str(tmp_path / f"{split}.jsonl") for split in splits}
    answer = partial(real, "json", data_files=files, cache_dir=kept)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: answer(split=split))
    data = load("tiny/posts", words)
    counts = len(data.train["input_ids"]), len(data.test["input_ids"])
    assert counts == ((5, 5) if "test" in splits else (3, 2))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"user": "a", "text": "b"}], "train.jsonl has no column 'user_id', it has 'user', 'text'"),
        (
            [{"user_id": 1.5, "text": "b"}],
            "column user_id holds double, expected names or integers: .* --data.user_column",
        ),
        (
            [{"user_id": 1, "text": 5}],
            "train column text holds int, expected texts: name another",
        ),
        (
            [{"user_id": 1, "text": "b", "subreddit": 3}],
            "column subreddit holds int64, expected names: .* --data.subreddit_column",
        ),
        ([{"user_id": 1, "text": "b", "created": "noon"}], "created holds string, expected numbers or times"),
        ([{"user_id": 1, "text": "b", "created": [1]}], "created holds list<.*>, expected numbers or times"),
        ([{"user_id": 1, "text": "[deleted]"}], "leaves no posts to train on, expected at least one"),
        ([{"user_id": 1, "text": "a"}, {"user_id": 2, "text": "b"}], "leaves no posts to test on, expected at least"),
        ([{"user_id": None, "text": "a"}], "train.jsonl has no 'user_id' at row 0"),
        ([{"user_id": "", "text": "a"}], "train column user_id is empty at row 0, expected a name"),
        # A column that the first post lacks is there all the same.
        ([{"user_id": 1, "text": "a"}, {"user_id": 1, "text": "b", "created": 5}], "has no 'created' at row 0"),
    ],
)
def test_refuses_malformed_rows(tmp_path: Path, words: Path, rows: list[Row], message: str) -> None:
    write(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=message) as refused:
        load(tmp_path, words)
    assert "\n" not in str(refused.value)
    assert not (words / "cache").exists()


def test_refuses_what_is_not_there_or_broken(tmp_path: Path, words: Path) -> None:
    with pytest.raises(DataError, match=r"'./nowhere' does not exist, expected LEAF's folder .* or give another"):
        load("./nowhere", words)
    with pytest.raises(DataError, match=r"has no file for the split train"):
        load(tmp_path, words)
    (tmp_path / "train.jsonl").write_text('{"user_id": "a", "text": "b"}\n{"user_id": "a", "te')
    with pytest.raises(DataError, match=r"train.jsonl line 2 is no JSON"):
        load(tmp_path, words)
    with pytest.raises(DataError, match=r"data.tokenizer is missing"):
        Reddit(str(tmp_path)).load()


def test_refuses_arguments() -> None:
    for name in ("min_posts", "max_users", "max_test_examples"):
        for value in (0, True, 2.0):
            with pytest.raises(DataError, match=rf"data.{name} is {value}, expected a whole number of at least 1"):
                Reddit(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data.max_length is 7, expected a whole number of at least 8"):
        Reddit(max_length=7)


@pytest.mark.skipif(not (REAL / "reddit").is_dir(), reason="the real Reddit posts are not beside the checkout")
def test_a_slice_of_the_real_file(tmp_path: Path, words: Path) -> None:
    with gzip.open(REAL / "reddit/train.jsonl.gz", "rt") as file:
        rows = [json.loads(next(file)) for _ in range(400)]
    write(tmp_path / "train.jsonl.gz", rows)
    data = load(tmp_path, words, max_length=64)
    sizes = np.unique([row["user_id"] for row in rows], return_counts=True)[1]
    assert len(data.test["input_ids"]) == sum(max(1, size // 10) for size in sizes if size > 1)
    assert len(data.train["input_ids"]) + len(data.test["input_ids"]) == 400
    users, classes = known(data)
    assert len(set(users)) == len(sizes)
    places = sorted({row["subreddit"] for row in rows})
    for user in set(users):
        written = [row["subreddit"] for row in rows if row["user_id"] == user]
        ours = [places[number] for number, owner in zip(classes, users, strict=True) if owner == user]
        assert ours == written[: len(ours)], "the file has a user's posts in order of time"
