"""Texts that stand behind another, as tokens and back; alone, a tokenizer may give or take the space at their start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_partitions.errors import DataError
from data_partitions.texts.tokens import cached_tokens, pad_rows

LEAD = "\n"
"""What a text is put behind while tokens are made of it, or it of tokens. Llama's tokenizers begin every text with a
space and drop it again; few tokenizers have tokens that go on over the end of a line."""


def continuation(text: str, tokenizer: Any) -> list[int]:
    """Turns one text into the tokens that it has behind another, without special ones."""
    lead, whole = (_tokens(given, tokenizer) for given in (LEAD, f"{LEAD}{text}"))
    return whole[len(lead) :] if whole[: len(lead)] == lead else _tokens(text, tokenizer)


def cached_continuations(
    texts: Sequence[str], tokenizer: Any, before: int, max_length: int, folder: str | Path
) -> np.ndarray:
    """Turns texts into the tokens that they have behind another, or reads what an earlier call made.

    A text that a token joins with the lead, such as two line breaks in GPT-2, is turned into tokens alone.

    Args:
        texts: at least one.
        tokenizer: what `load_tokenizer` returned.
        before: how many tokens it puts before every text; they are left out.
        max_length: the most tokens of a text; the rest is cut off.
        folder: where tokens are kept, `~` allowed.

    Returns:
        int32 (N, T), T at most max_length, as from `cached_tokens`.
    """
    lead = _tokens(LEAD, tokenizer)
    skipped = before + len(lead)
    found = cached_tokens([f"{LEAD}{text}" for text in texts], tokenizer, skipped + max_length, folder)
    joined = np.array([row[before:skipped].tolist() != lead for row in found])
    if not joined.any():
        return found[:, skipped:]
    few = [text for text, is_joined in zip(texts, joined, strict=True) if is_joined]
    alone = cached_tokens(few, tokenizer, before + max_length, folder)[:, before:]
    width = max(0, found.shape[1] - skipped, alone.shape[1])
    tokens = pad_rows([row[skipped:] for row in found], width)
    tokens[joined] = pad_rows(list(alone), width)
    return tokens


def text_behind(tokens: list[int], tokenizer: Any) -> str:
    """Turns tokens into the text that they are behind another, as `continuation` makes them; special ones are left out.

    Where the lead's text cannot be told from what follows, as before half a character, they are turned alone.
    """
    lead = _tokens(LEAD, tokenizer)
    before, whole = _text(lead, tokenizer), _text([*lead, *tokens], tokenizer)
    return whole.removeprefix(before) if whole.startswith(before) else _text(tokens, tokenizer)


def _tokens(text: str, tokenizer: Any) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def _text(tokens: list[int], tokenizer: Any) -> str:
    # Cleaning up would pull commas to the word before them, in programs too.
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def tokens_before(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts before every text; one that also puts some behind is refused."""
    added: list[int] = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    before = added.index(0)
    if any(added[before:]):
        raise DataError(
            "data.tokenizer puts a token behind every text, expected none, as an answer is to follow: set add_eos_token"
            " to false in its tokenizer_config.json, or give another"
        )
    return before
