"""Pairs of texts: as the tokenizer writes them, with its token types, made once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from data_partitions.texts.tokens import TextData, cached_pairs, load_tokenizer
from tests.data_partitions.words import save_words

FIRST = ["the goalie saves", "moon", "the engine rides fast fast fast", ""]
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
SECOND = ["ice", "orbit launch", "the moon moon moon moon", ""]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """Writes pairs as BERT does, with the second text and its end as type 1."""
    words = load_tokenizer(str(save_words(tmp_path / "words")))
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]",
        pair="[start] $A [end] $B:1 [end]:1",
        special_tokens=[("[start]", 2), ("[end]", 3)],
    )
    words.save_pretrained(tmp_path / "words")
    config = json.loads((tmp_path / "words/tokenizer_config.json").read_text())
    (tmp_path / "words/tokenizer_config.json").write_text(json.dumps(config | {"model_input_names": list(INPUTS)}))
    return load_tokenizer(str(tmp_path / "words"))


@pytest.mark.parametrize("max_length", [8, 50])
def test_a_batch_is_what_the_tokenizer_makes_of_it(tokenizer: Any, tmp_path: Path, max_length: int) -> None:
    columns = cached_pairs(FIRST, SECOND, tokenizer, max_length, tmp_path / "cache")
    assert {name: column.dtype for name, column in columns.items()} == {"input_ids": "int32", "token_type_ids": "int8"}
    rows = {name: torch.from_numpy(column) for name, column in columns.items()} | {"labels": torch.zeros(4).long()}
    batch = TextData(rows, rows, ("a", "b"), "text_classification", pad_token_id=0).transform(rows, None)
    fresh = load_tokenizer(str(tmp_path / "words"))
    expected = fresh(FIRST, SECOND, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    assert set(expected) == set(INPUTS)
    for name, values in expected.items():
        assert torch.equal(batch[name], values), name
        assert batch[name].dtype == torch.int64
    assert batch["input_ids"].shape[1] == min(max_length, 14)  # the longest pair has 6 and 5 words, and 3 more tokens


def test_the_types_say_which_text_a_token_is_of(tokenizer: Any, tmp_path: Path) -> None:
    columns = cached_pairs(FIRST[:2], SECOND[:2], tokenizer, 50, tmp_path / "cache")
    np.testing.assert_array_equal(columns["input_ids"], [[2, 4, 5, 6, 3, 13, 3], [2, 12, 3, 7, 8, 3, -1]])
    np.testing.assert_array_equal(columns["token_type_ids"], [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 0]])


def test_slices_make_no_difference(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cached_pairs(FIRST, SECOND, tokenizer, 8, tmp_path / "whole")
    monkeypatch.setattr("data_partitions.texts.tokens.SLICE", 3)
    for name, column in cached_pairs(FIRST, SECOND, tokenizer, 8, tmp_path / "cut").items():
        np.testing.assert_array_equal(column, whole[name])
        assert column.dtype == whole[name].dtype


def test_a_tokenizer_that_names_no_types_gets_none(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert set(cached_pairs(FIRST, SECOND, tokenizer, 50, tmp_path / "cache")) == {"input_ids"}


def test_a_second_call_tokenises_nothing(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cached_pairs(FIRST, SECOND, tokenizer, 8, tmp_path / "cache")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenised again")

    fresh = load_tokenizer(str(tmp_path / "words"))
    monkeypatch.setattr(type(fresh), "__call__", never)
    again = cached_pairs(FIRST, SECOND, fresh, 8, tmp_path / "cache")
    for name, column in made.items():
        np.testing.assert_array_equal(again[name], column)
    for first, second in ((SECOND, FIRST), (FIRST, [*SECOND[:3], "moon"])):
        with pytest.raises(AssertionError, match="tokenised again"):
            cached_pairs(first, second, fresh, 8, tmp_path / "cache")


def test_a_pair_of_nothing_is_an_end(tmp_path: Path) -> None:
    """Where the tokenizer adds nothing of its own, as GPT-2's."""
    plain = load_tokenizer(str(save_words(tmp_path / "words")))
    plain.backend_tokenizer.post_processor = processors.Sequence([])
    plain.model_input_names = list(INPUTS)
    columns = cached_pairs(["", "moon"], ["", "ice"], plain, 8, tmp_path / "cache")
    np.testing.assert_array_equal(columns["input_ids"], [[3, -1], [12, 13]])
    assert columns["token_type_ids"][0].tolist() == [0, 0]
