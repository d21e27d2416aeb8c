"""LEAF's JSON, in the shape that its own preprocessing of Reddit writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_partitions.errors import DataError
from data_partitions.reading.leaf import leaf_files, read_leaf

WIDTH = 4  # LEAF has 10 words a piece


def pieces(text: str) -> list[list[str]]:
    """A comment as LEAF's `create_seqs` cuts it."""
    words = ["<BOS>", *text.split(), "<EOS>"]
    words += ["<PAD>"] * (-len(words) % WIDTH)
    return [words[start : start + WIDTH] for start in range(0, len(words), WIDTH)]


def comments(*posts: tuple[str, str]) -> dict[str, Any]:
    """One user's x and y of (text, subreddit)."""
    about = [{"subreddit": place, "created_utc": 7, "score": 1, "target_tokens": pieces(text)} for text, place in posts]
    return {"x": [pieces(text) for text, _ in posts], "y": about}


def save_leaf(root: Path, split: str, file: str, users: dict[str, Any]) -> Path:
    """Saves one of a split's files; `num_samples` counts all splits of a user, as LEAF's does."""
    (root / split).mkdir(parents=True, exist_ok=True)
    counts = [len(data["x"]) + 5 if isinstance(data, dict) and "x" in data else 5 for data in users.values()]
    content = {"users": list(users), "num_samples": counts, "user_data": users}
    path = root / split / file
    path.write_text(json.dumps(content))
    return path


def test_comments_lose_their_pieces_and_marks(tmp_path: Path) -> None:
    """Two files by name, a text of one piece and one of three, a user who has nothing in this split."""
    save_leaf(tmp_path, "train", "reddit_1_train.json", {"4": comments(("so true . is not it ? yes", "ice"))})
    first = {"9": comments(("hi", "moon"), ("a <url> here", "ice")), "2": {"x": [], "y": []}}
    save_leaf(tmp_path, "train", "reddit_0_train.json", first)
    posts = read_leaf(leaf_files(tmp_path, "train"))
    assert posts.texts == ["hi", "a <url> here", "so true . is not it ? yes"]
    assert posts.users.tolist() == ["9", "9", "4"]
    assert posts.subreddits is not None
    assert posts.subreddits.tolist() == ["moon", "ice", "ice"]
    assert posts.created is None


def test_texts_whose_y_name_no_subreddit(tmp_path: Path) -> None:
    """As LEAF's other sets of texts have them."""
    save_leaf(tmp_path, "test", "all_data.json", {"a": {"x": ["To be", ""], "y": ["o", 1]}, "b": {"x": [], "y": []}})
    posts = read_leaf(leaf_files(tmp_path, "test"))
    assert (posts.texts, posts.users.tolist(), posts.subreddits) == (["To be", ""], ["a", "a"], None)


def test_what_is_no_folder_of_leaf(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jsonl").write_text("{}")
    assert leaf_files(tmp_path, "train") == leaf_files(tmp_path, "test") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"users": ["1"', r"cannot be read \(.*\), expected LEAF's JSON: get it again"),
        ("[]", "has neither, expected LEAF's 'users', a list, and 'user_data', by user"),
        ('{"users": ["1"], "num_samples": [1]}', "has 'users', 'num_samples', expected LEAF's 'users'"),
        ('{"users": ["1"], "user_data": {"2": {"x": [], "y": []}}}', "has no x and y for user '1', expected a list of"),
        ('{"users": ["1"], "user_data": {"1": {"x": []}}}', "has no x and y for user '1'"),
        ('{"users": [1], "user_data": {"1": {"x": [], "y": []}}}', "has no x and y for user 1,"),
        ('{"users": ["1"], "user_data": {"1": {"x": ["a"], "y": []}}}', "user '1' has 1 x and 0 y, expected as many"),
        ('{"users": ["1"], "user_data": {"1": {"x": ["a", 5], "y": [1, 1]}}}', "user '1' has an x at row 1 of another"),
        (
            '{"users": ["1"], "user_data": {"1": {"x": [["a", "b"]], "y": [1]}}}',
            "an x at row 0 of another form",
        ),
        ('{"users": ["1"], "user_data": {"1": {"x": [[["a", 5]]], "y": [1]}}}', "an x at row 0 of another form"),
        ('{"users": ["1"], "user_data": {"1": {"x": ["a"], "y": [{"subreddit": 3}]}}}', "has the subreddit 3 at row 0"),
        (
            '{"users": ["1"], "user_data": {"1": {"x": ["a", "b"], "y": [{"subreddit": "ice"}, {}]}}}',
            "user '1' has no subreddit at row 1, unlike the first text, expected one in every y or in none",
        ),
    ],
)
def test_a_broken_file_is_named_with_what_was_expected(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(content)
    with pytest.raises(DataError, match=rf"^{file} .*{message}") as refused:
        read_leaf([file])
    assert "\n" not in str(refused.value)
