"""A label as an answer in words: a text, a question, and the label's name, for a language model to write."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.errors import DataError
from data_partitions.texts.continuing import tokens_before
from data_partitions.texts.tokens import cached_tokens, pad_rows, with_answers

if TYPE_CHECKING:
    from torch import Tensor


SCORINGS = ("likelihood", "generation")
"""What may count as right: the most probable of all labels' answers, or an answer written freely."""


def require_scoring(scoring: str) -> None:
    """Refuses a word for what counts as right that is none of `SCORINGS`.

    Raises:
        DataError: for another word.
    """
    if scoring not in SCORINGS:
        raise DataError(f"data.scoring is {scoring!r}, expected {' or '.join(SCORINGS)}: give one of them")


def written_labels(
    tokenizer: Any,
    texts: Sequence[str],
    labels: np.ndarray,
    label_names: Sequence[str],
    question: str,
    max_length: int,
    cache: str | Path,
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Writes a question and its label's name behind every text; a long text is cut so that all fits.

    All texts are cut by the longest name, whatever their own is: a text's length must not tell the answer.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    labels as words; as FLASC (Kuo et al.), Appendix B.3, asks GPT-2 for them.

    Args:
        tokenizer: what `load_tokenizer` returned.
        texts: at least one.
        labels: integers (N,), 0 to len(label_names) - 1, not checked here.
        label_names: what is written for each label, a space before it and, where the tokenizer has such a token, the
            end of text behind it.
        question: what stands between text and name, such as a line break and "Topic:"; empty for nothing.
        max_length: tokens of text, question and name together.
        cache: the folder that keeps the texts' tokens for the next start, `~` allowed.

    Returns:
        The columns for text_to_text, input_ids int32 (N, Q + K) and labels int64 (N, K), as `with_answers` lays them
        out; and the answers int32 (L, K), row l being the tokens of label l with `NO_TOKEN` behind them, as
        `FederatedData.choices` takes them.

    Raises:
        DataError: if the tokenizer puts a token behind every text, max_length leaves no token for the text, a name is
            empty, or one name's tokens are another's or their beginning, so that the two could not be told apart.
    """
    import torch

    tokens_before(tokenizer)  # refuses one that ends every text, which would end it before the question
    asked = np.array(tokenizer(question, add_special_tokens=False)["input_ids"], dtype=np.int32)
    answers = _answers(tokenizer, label_names)
    choices = pad_rows(answers, max(map(len, answers)))
    room = max_length - len(asked) - choices.shape[1]
    if room < 1:
        least = max_length - room + 1
        raise DataError(f"data.max_length is {max_length}, expected at least {least} for question and name")
    _require_apart(answers, label_names)
    starts = cached_tokens(texts, tokenizer, room, cache)
    questions = np.concatenate([starts, np.broadcast_to(asked, (len(starts), len(asked)))], axis=1)
    inputs, targets = with_answers(questions, choices[labels])
    return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(targets)}, choices


def _answers(tokenizer: Any, label_names: Sequence[str]) -> list[list[int]]:
    """The tokens of each name, the end of text included where there is such a token."""
    for label, name in enumerate(label_names):
        if not name.strip():
            raise DataError(f"label {label} has the name {name!r}, expected one to write: name the label")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    names = tokenizer([f" {name}" for name in label_names], add_special_tokens=False)["input_ids"]
    return [name + end for name in names]


def _require_apart(answers: Sequence[list[int]], label_names: Sequence[str]) -> None:
    """Refuses an answer that is another one, or its beginning: the shorter one would always be the more probable.

    Sorted, an answer's longer forms stand directly behind it.
    """
    ordered = sorted(zip(answers, label_names, strict=True))
    for (shorter, name), (longer, other) in pairwise(ordered):
        if longer[: len(shorter)] == shorter:
            relation = "the same tokens as" if longer == shorter else "tokens that begin those of"
            raise DataError(
                f"label {name!r} has {relation} {other!r} in data.tokenizer, expected answers that can be told apart:"
                f" rename a label or give another tokenizer"
            )
