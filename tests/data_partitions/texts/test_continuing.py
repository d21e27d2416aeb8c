"""Answers behind a prompt, as tokens and back: no space is made or lost at their start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_partitions.texts.continuing import cached_continuations, continuation, text_behind
from data_partitions.texts.instructions import ANSWER, RESPONSE, Pairs, instruction_columns
from data_partitions.texts.tokens import load_tokenizer
from data_partitions.texts.writing import Writing

STORIES = Path(__file__).resolve().parents[4] / "shared/data/models/stories260K"
BODY = "    if a:\n        return a , b\n    return 'don 't'\n"
TEXTS = (BODY, "def f():\n    return 1", " 7", "\n    x", "\n", " ", "", "é€ <|x|>", "it 's")


def stories() -> Any:
    if not STORIES.is_dir():
        pytest.skip("stories260K is not beside the checkout")
    return load_tokenizer(str(STORIES))


def like_gpt2() -> Any:
    """Bytes, with two line breaks and four spaces as tokens of their own, in GPT-2's pieces."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols, "ĊĊ", "ĠĠ", "ĠĠĠ", "[end]"])}
    merges = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("ĠĠ", "Ġ")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[end]", pad_token="[end]", clean_up_tokenization_spaces=True
    )


@pytest.mark.parametrize("kind", [stories, like_gpt2])
def test_texts_come_back_as_they_were(kind: Any, tmp_path: Path) -> None:
    tokenizer = kind()
    before = int(tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"][0])
    rows = cached_continuations(TEXTS, tokenizer, before, 80, tmp_path)
    assert [[token for token in row.tolist() if token >= 0] for row in rows] == [
        continuation(text, tokenizer) for text in TEXTS
    ]
    assert [text_behind(continuation(text, tokenizer), tokenizer) for text in TEXTS] == list(TEXTS)
    whole = cached_continuations(TEXTS, tokenizer, before, 3, tmp_path)
    np.testing.assert_array_equal(whole, rows[:, :3])


@pytest.mark.parametrize("kind", [stories, like_gpt2])
@pytest.mark.parametrize(("closing", "lead"), [(RESPONSE, ""), (ANSWER, " ")])
def test_a_body_is_judged_as_it_was_given(kind: Any, closing: str, lead: str, tmp_path: Path) -> None:
    """What is learned decodes to the answer, and the prompt's and the answer's tokens to what stands in one text."""
    tokenizer, heard = kind(), list[str]()
    answers = [BODY, "def f():\n    return 1"]
    pairs = Pairs(["moon", "ice"], answers, np.zeros(2, dtype=np.int64))
    columns, _ = instruction_columns(tokenizer, pairs, closing, 200, 100, tmp_path)
    tokens = columns["labels"].masked_fill(columns["labels"] == -100, tokenizer.eos_token_id)[:, None]
    Writing(tokenizer, lambda row, text: bool(heard.append(text)) or True).judge(columns["labels"][:, 0] * 0, tokens)
    assert heard == [f"{lead}{answer}" for answer in answers]
    for row, question, answer in zip(columns["input_ids"], pairs.questions, answers, strict=True):
        kept = [token for token in row.tolist() if token >= 0]
        text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert text == f"{question}{closing}{lead}{answer}"


def test_half_a_character_is_no_error() -> None:
    tokenizer = stories()
    half = tokenizer.convert_tokens_to_ids(["<0xE2>", "<0x82>", "a"])
    assert text_behind(half, tokenizer).endswith("a")
    assert "\n" not in text_behind(half, tokenizer)
