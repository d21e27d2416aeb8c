"""A text, a question and a label's name: laid out for a language model, and names that cannot be told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from data_partitions.errors import DataError
from data_partitions.texts.labels_as_text import written_labels
from data_partitions.texts.tokens import IGNORED, NO_TOKEN, load_tokenizer
from tests.data_partitions.words import save_words

NAMES = ("ice", "the moon", "engine")
TEXTS = ["goalie saves goalie saves", "orbit", "rides fast", ""]
LABELS = np.array([0, 1, 2, 1])


def written(folder: Path, texts: list[str] = TEXTS, **changed: Any) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    tokenizer = changed.pop("tokenizer", None) or load_tokenizer(str(save_words(folder / "words", words=("about:",))))
    labels = changed.pop("labels", LABELS)
    layout = {"label_names": NAMES, "question": " about:", "max_length": 8, "cache": folder / "cache"} | changed
    return written_labels(tokenizer, texts, labels, **layout)


def test_rows_end_in_question_and_answer(tmp_path: Path) -> None:
    """Special tokens are 0 to 3 (start 2, end 3), words begin at 4, the question is 14; names take two tokens at most.

    Of eight tokens the question takes one and the longest answer three, so a text keeps four, its start among them.
    """
    columns, choices = written(tmp_path)
    np.testing.assert_array_equal(choices, [[13, 3, NO_TOKEN], [4, 12, 3], [9, 3, NO_TOKEN]])
    assert (choices.dtype, columns["input_ids"].dtype, columns["labels"].dtype) == (np.int32, torch.int32, torch.int64)
    assert columns["input_ids"].tolist() == [
        [2, 5, 6, 5, 14, 13, 3, -1],
        [-1, -1, 2, 7, 14, 4, 12, 3],
        [-1, 2, 10, 11, 14, 9, 3, -1],
        [-1, -1, -1, 2, 14, 4, 12, 3],
    ]
    assert columns["labels"].tolist() == [[13, 3, IGNORED], [4, 12, 3], [9, 3, IGNORED], [4, 12, 3]]


def test_the_label_changes_nothing_before_the_answer(tmp_path: Path) -> None:
    """The length that is left of a long text must not tell the label."""
    columns, _ = written(tmp_path, ["goalie saves " * 9] * 3, labels=np.array([0, 1, 2]))
    questions = columns["input_ids"][:, :-3]
    assert torch.equal(questions[0], questions[1])
    assert torch.equal(questions[0], questions[2])


def test_both_splits_have_the_same_answers(tmp_path: Path) -> None:
    """Choices come from the names alone, also of labels that a split lacks; a question may be empty."""
    _, choices = written(tmp_path, question="")
    columns, again = written(tmp_path, ["orbit"], labels=np.array([2]), question="")
    np.testing.assert_array_equal(choices, again)
    assert columns["input_ids"].tolist() == [[2, 7, 9, 3, -1]]


def test_refuses_answers_that_cannot_be_told_apart(tmp_path: Path) -> None:
    words = load_tokenizer(str(save_words(tmp_path / "words")))
    with pytest.raises(DataError, match=r"label 'unheard' has the same tokens as 'unseen' in data.tokenizer"):
        written(tmp_path, tokenizer=words, label_names=("ice", "unseen", "unheard"))
    written(tmp_path, tokenizer=words, label_names=("ice", "ice moon", "moon"))  # the end tells the first two apart
    endless = load_tokenizer(str(save_words(tmp_path / "endless", end=None)))
    with pytest.raises(DataError, match=r"label 'ice' has tokens that begin those of 'ice moon'"):
        written(tmp_path, tokenizer=endless, label_names=("ice", "engine", "ice moon"))
    columns, _ = written(tmp_path, ["orbit"], tokenizer=endless, labels=np.array([0]))
    assert columns["labels"].tolist() == [[13, IGNORED]]


def test_refuses_a_tokenizer_that_ends_every_text(tmp_path: Path) -> None:
    """The end would stand between the text and the question."""
    tokenizer = load_tokenizer(str(save_words(tmp_path / "words", words=("about:",))))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]", special_tokens=[("[start]", 2), ("[end]", 3)]
    )
    with pytest.raises(DataError, match=r"data.tokenizer puts a token behind every text, expected none") as caught:
        written(tmp_path, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)


def test_refuses_no_name_and_no_room(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label 1 has the name ' ', expected one to write"):
        written(tmp_path, label_names=("ice", " ", "moon"))
    with pytest.raises(DataError, match=r"data.max_length is 4, expected at least 5 for question and name"):
        written(tmp_path, max_length=4)
    written(tmp_path, max_length=5)
