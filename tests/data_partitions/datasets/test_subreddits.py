"""Subreddits: whose posts of where are kept, and the name behind each."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_partitions.dataset import FederatedData
from data_partitions.datasets.subreddits import Subreddits
from data_partitions.errors import DataError
from data_partitions.texts.tokens import NO_TOKEN, load_tokenizer
from tests.data_partitions.reading.test_leaf import comments, save_leaf
from tests.data_partitions.words import save_words

REAL = Path(__file__).resolve().parents[4] / "shared/data"
PLACES = ("nasa", "hockey", "cars")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return save_words(tmp_path / "words", words=("Subreddit:", *PLACES))


def save(folder: Path, posts: list[tuple[str, str, str]], split: str = "train") -> None:
    """Saves posts of (user, subreddit, text)."""
    rows = [{"user_id": user, "subreddit": place, "text": text} for user, place, text in posts]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(path: Path, words: Path, **arguments: Any) -> FederatedData:
    return Subreddits(str(path), str(words), cache=str(words / "cache"), **arguments).load()


def owners(data: FederatedData) -> tuple[list[str], list[str]]:
    """Who wrote each training post, and where."""
    assert data.user is not None
    assert data.classes is not None
    return data.user.tolist(), [data.label_names[label] for label in data.classes]


def said(words: Path, column: torch.Tensor) -> list[str]:
    tokenizer = load_tokenizer(str(words))
    return [tokenizer.decode([token for token in row.tolist() if token != NO_TOKEN]) for row in column]


def test_name_and_end_stand_behind_every_post(tmp_path: Path, words: Path) -> None:
    save(tmp_path, [("ann", "nasa", "moon"), ("ann", "cars", "the engine"), ("ann", "nasa", "orbit " * 20)])
    data = load(tmp_path, words, max_length=8)
    assert said(words, data.train["input_ids"]) == [
        "[start] moon Subreddit: nasa [end]",
        "[start] the engine Subreddit: cars [end]",
    ]
    assert said(words, data.test["input_ids"]) == ["[start] orbit orbit orbit orbit Subreddit: nasa [end]"]
    assert torch.equal(data.train["input_ids"][:, -2:].long(), data.train["labels"])
    assert (data.task, data.label_names) == ("text_to_text", ("cars", "nasa"))
    assert owners(data) == (["ann", "ann"], ["nasa", "cars"])
    assert data.choices is not None
    assert said(words, torch.from_numpy(data.choices)) == ["cars [end]", "nasa [end]"]
    assert load(tmp_path, words, max_length=8, scoring="generation").choices is None


def test_the_most_frequent_subreddits_then_the_most_active_users_in_them(tmp_path: Path, words: Path) -> None:
    """Hockey 6, cars and nasa 4 each: by name cars. There ann has 4 posts, cat and dan 3 each: by name cat. Bob's 4 do
    not count, and his test post of hockey goes with him; eve's stays, as nobody trains on hers.
    """
    wrote = [("dan", "cars", 3), ("bob", "nasa", 4), ("ann", "hockey", 3), ("ann", "cars", 1), ("cat", "hockey", 3)]
    save(tmp_path, [(user, place, "the") for user, place, count in wrote for _ in range(count)])
    tests = [("dan", "cars"), ("bob", "hockey"), ("ann", "cars"), ("eve", "hockey"), ("cat", "nasa")]
    save(tmp_path, [(user, place, user) for user, place in tests], "test")
    data = load(tmp_path, words, users=2, subreddits=2)
    assert owners(data) == (["ann"] * 4 + ["cat"] * 3, ["hockey"] * 3 + ["cars"] + ["hockey"] * 3)
    assert [text.split()[-2] for text in said(words, data.test["input_ids"])] == ["cars", "hockey"]
    everyone = load(tmp_path, words)
    assert (len(owners(everyone)[0]), len(everyone.test["input_ids"])) == (14, 5)


def test_leafs_folder_with_other_users_to_test_on(tmp_path: Path, words: Path) -> None:
    """Test posts of subreddits that nobody learns are left out, and of users who were not chosen."""
    train = {"1": comments(("moon", "nasa"), ("fast", "cars")), "2": comments(("ice", "hockey"))}
    save_leaf(tmp_path, "train", "reddit_train.json", train)
    test = {"3": comments(("orbit", "nasa"), ("goalie", "hockey")), "2": comments(("moon", "nasa"))}
    save_leaf(tmp_path, "test", "reddit_test.json", test)
    data = load(tmp_path, words, users=1)
    assert owners(data) == (["1", "1"], ["nasa", "cars"])
    assert said(words, data.test["input_ids"]) == ["[start] orbit Subreddit: nasa [end]"]
    assert len(load(tmp_path, words).test["input_ids"]) == 3
    assert len(load(tmp_path, words, max_test_examples=2).test["input_ids"]) == 2


def test_refuses_posts_without_enough_subreddits(tmp_path: Path, words: Path) -> None:
    save(tmp_path, [("ann", "nasa", "moon")] * 3 + [("bob", "cars", "fast")] * 2)
    with pytest.raises(DataError, match=r"has its 1 most active users in nasa alone, expected at least two subreddits"):
        load(tmp_path, words, users=1)
    with pytest.raises(DataError, match=r"names no subreddits in train, expected a column 'place', or"):
        load(tmp_path, words, subreddit_column="place")
    with pytest.raises(DataError, match=r"label 'cars' has the same tokens as 'nasa'"):
        load(tmp_path, save_words(tmp_path / "other"))


def test_refuses_arguments() -> None:
    for name, least in (("users", 1), ("max_test_examples", 1), ("subreddits", 2)):
        for value in (least - 1, True, 3.0):
            with pytest.raises(DataError, match=rf"{name} is {value}, expected a whole number of at least {least}"):
                Subreddits(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data.scoring is 'guess', expected likelihood or generation"):
        Subreddits(scoring="guess")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data.tokenizer is missing"):
        Subreddits().load()


@pytest.mark.skipif(not (REAL / "reddit").is_dir(), reason="the real Reddit posts are not beside the checkout")
def test_a_slice_of_the_real_file(tmp_path: Path) -> None:
    with gzip.open(REAL / "reddit/train.jsonl.gz", "rt") as file:
        (tmp_path / "train.jsonl").write_text("".join(next(file) for _ in range(500)))
    tokenizer = str(REAL / "models/stories260K")
    data = Subreddits(str(tmp_path), tokenizer, max_length=64, users=10, cache=str(tmp_path / "cache")).load()
    users, places = owners(data)
    assert len(set(users)) == 10
    assert set(places) == set(data.label_names)
    assert 3 <= len(data.label_names) <= 8
    assert data.choices is not None
    labels = data.test["labels"].masked_fill(data.test["labels"] == -100, NO_TOKEN).tolist()
    assert all(row in data.choices.tolist() for row in labels)
