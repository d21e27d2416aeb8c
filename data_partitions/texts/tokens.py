"""Texts as tokens: a backbone's tokenizer, tokens made once and kept in a file, and the two layouts that tasks read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.dataset import WITHOUT_NUMBERED_LABELS, FederatedData
from data_partitions.errors import DataError
from data_partitions.reading.cache import cached_array
from data_partitions.reading.columns import is_local
from data_partitions.reading.hub import PROBE_SECONDS, probe_hub

if TYPE_CHECKING:
    from torch import Tensor

NO_TOKEN = -1
"""What stands in stored columns where a row has no token."""

SLICE = 10_000
"""How many texts a tokenizer is given at a time."""

IGNORED = -100
"""What stands in token labels where nothing is to be predicted, as in transformers and torch."""


def load_tokenizer(path: str) -> Any:
    """Loads a tokenizer that can pad.

    Args:
        path: a local folder (an existing path, or anything that starts with `/`, `.` or `~`) or a hub id `owner/name`,
            taken from the local hub cache where it lies there.

    Returns:
        The tokenizer. Where it names no padding token, its end-of-text token pads, as is usual for GPT-2: padding is
        masked, so nothing learns from it.

    Raises:
        DataError: if there is no tokenizer under `path` (the hub is given 3 seconds), or it has neither of the two.
    """
    tokenizer = _from_folder(path) if is_local(path) else _from_hub(path)
    if not tokenizer.is_fast:
        raise DataError(
            f"data.tokenizer {path!r} is a {type(tokenizer).__name__} without a fast form, expected one with"
            f" tokenizer.json: convert it, or give another with --data.tokenizer"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise DataError(
            f"data.tokenizer {path!r} has no padding and no end-of-text token, expected one of them: set pad_token in"
            f" its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_folder(path: str) -> Any:
    try:
        return _load(os.path.expanduser(path), local_files_only=True)
    except Exception as error:  # transformers, the disk and every format of a tokenizer raise their own
        raise _no_tokenizer(path, " ".join(str(error).split())) from error


def _from_hub(path: str) -> Any:
    """Takes a hub's tokenizer from the cache, else asks the hub."""
    from huggingface_hub import HfApi

    try:
        return _load(path, local_files_only=True)
    except Exception as missing:
        if failure := probe_hub(lambda: HfApi().model_info(path, timeout=PROBE_SECONDS)):
            raise _no_tokenizer(path, failure) from missing
    try:
        return _load(path, local_files_only=False)
    except Exception as error:
        raise _no_tokenizer(path, " ".join(str(error).split())) from error


def _load(source: str, local_files_only: bool) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder that has only a model
        raise ValueError("it has no vocabulary")
    return tokenizer


def _no_tokenizer(path: str, reason: str) -> DataError:
    return DataError(
        f"data.tokenizer {path!r} cannot be loaded ({reason}), expected a folder with tokenizer.json or a hub id: give"
        f" one with --data.tokenizer"
    )


def cached_tokens(texts: Sequence[str], tokenizer: Any, max_length: int, folder: str | Path) -> np.ndarray:
    """Turns texts into tokens, or reads what an earlier call made of the same texts with the same tokenizer.

    Args:
        texts: at least one.
        tokenizer: what `load_tokenizer` returned.
        max_length: the most tokens of a text, those that the tokenizer adds included; the rest is cut off.
        folder: where tokens are kept, `~` allowed.

    Returns:
        int32 (N, T), T at most max_length: a text's tokens from the left, `NO_TOKEN` behind the last one. A text
        without tokens has the end-of-text token.
    """

    def tokenize() -> np.ndarray:
        return _stack(
            _lay_out(tokenizer(list(some), truncation=True, max_length=max_length)["input_ids"], tokenizer)
            for some in _slices(texts)
        )

    made_by = _made_by(tokenizer, max_length)
    parts = (part.encode(errors="surrogatepass") for part in chain([made_by], texts))
    return cached_array(folder, "tokens", parts, tokenize)


def cached_pairs(
    texts: Sequence[str], others: Sequence[str], tokenizer: Any, max_length: int, folder: str | Path
) -> dict[str, np.ndarray]:
    """Turns pairs of texts into tokens in the tokenizer's own form of a pair, or reads what an earlier call made.

    What stands between the two texts is the tokenizer's business: BERT's has `[SEP]`, GPT-2's nothing at all.

    Args:
        texts: the first text of each pair, at least one.
        others: the second ones, as many.
        tokenizer: what `load_tokenizer` returned.
        max_length: the most tokens of a pair, those that the tokenizer adds included; the longer text is cut first.
        folder: where tokens are kept, `~` allowed.

    Returns:
        `input_ids` int32 (N, T), as from `cached_tokens`; and where the tokenizer gives them, as BERT's does,
        `token_type_ids` int8 (N, T), such as 0 for a token of the first text and 1 for one of the second, 0 behind the
        last token.
    """

    @cache
    def tokenize() -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their types, int8, made together."""
        tokens, types = [], []
        for pair in zip(_slices(texts), _slices(others), strict=True):
            options = {"truncation": "longest_first", "max_length": max_length, "return_token_type_ids": True}
            found = tokenizer(*map(list, pair), **options)
            tokens.append(_lay_out(found["input_ids"], tokenizer))
            types.append(np.zeros(tokens[-1].shape, dtype=np.int8))
            for row, kinds in enumerate(found["token_type_ids"]):
                types[-1][row, : len(kinds)] = kinds
        return _stack(tokens), _stack(types, behind=0)

    made_by = _made_by(tokenizer, max_length)
    parts = [part.encode(errors="surrogatepass") for part in chain(["pairs", made_by], texts, others)]
    columns = {"input_ids": cached_array(folder, "tokens", parts, lambda: tokenize()[0])}
    if "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = cached_array(folder, "types", parts, lambda: tokenize()[1])
    return columns


def _made_by(tokenizer: Any, max_length: int) -> str:
    """What a tokenizer does, without what it was last asked to do; the version stands for how that is applied."""
    import tokenizers

    rules = tokenizer.backend_tokenizer
    rules.no_truncation()
    rules.no_padding()
    # What is written out does not say whether the names of special tokens, found in a text, are these tokens.
    asked = f"{max_length} {tokenizer.truncation_side} {bool(tokenizer.split_special_tokens)} {_end(tokenizer)}"
    return f"{tokenizers.__version__} {asked} {rules.to_str()}"


def _slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cuts texts into slices: what a tokenizer returns takes far more room than an array of its tokens."""
    for first in range(0, len(texts), SLICE):
        yield texts[first : first + SLICE]


def _end(tokenizer: Any) -> int:
    """What an empty text becomes where the tokenizer adds nothing to it."""
    end: int = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return end


def _lay_out(found: Sequence[list[int]], tokenizer: Any) -> np.ndarray:
    """Rows of tokens as one array; a row without any becomes the end-of-text token."""
    return pad_rows([tokens or [_end(tokenizer)] for tokens in found], max(1, *map(len, found)))


def _stack(pieces: Iterable[np.ndarray], behind: int = NO_TOKEN) -> np.ndarray:
    """Puts arrays of different widths on top of each other, filled at the right."""
    made = list(pieces)
    shape = sum(map(len, made)), max(piece.shape[1] for piece in made)
    stacked, first = np.full(shape, behind, dtype=made[0].dtype), 0
    for piece in made:
        stacked[first : first + len(piece), : piece.shape[1]] = piece
        first += len(piece)
    return stacked


def pad_rows(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Lays rows of tokens out as int32 (N, width), `NO_TOKEN` behind the last of each."""
    padded = np.full((len(rows), width), NO_TOKEN, dtype=np.int32)
    for row, tokens in enumerate(rows):
        padded[row, : len(tokens)] = tokens
    return padded


def with_answers(questions: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts an answer behind every question, such that all answers start in the same column.

    Args:
        questions: int32 (N, Q), tokens from the left, `NO_TOKEN` behind them.
        answers: int32 (N, K), likewise.

    Returns:
        The inputs int32 (N, Q + K), questions pushed to the right against the answers; and the labels int64 (N, K),
        the answers with `IGNORED` behind them.
    """
    # A stable sort by "is a token" moves the gap of every row to its left.
    order = np.argsort(questions != NO_TOKEN, axis=1, kind="stable")
    inputs = np.concatenate([np.take_along_axis(questions, order, axis=1), answers], axis=1)
    return inputs, np.where(answers == NO_TOKEN, IGNORED, answers).astype(np.int64)


@dataclass(frozen=True, eq=False)
class TextData(FederatedData):
    """Texts in memory as one int32 column of tokens, made into a model's inputs a batch at a time.

    A column `token_type_ids` goes along where there is one, as `cached_pairs` makes it.

    `pad_token_id` must be given.

    Raises:
        DataError: for a text without any token, of which attention can make nothing.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for split, columns in (("train", self.train), ("test", self.test)):
            empty = (columns["input_ids"] == NO_TOKEN).all(1).nonzero()
            if len(empty):
                row = empty[0].item()
                raise DataError(f"{split} text at row {row} has no tokens, expected at least one: drop the row")

    def spans(self, columns: dict[str, Tensor]) -> np.ndarray:
        """From the first token to the last; to the end where that is an answer's. See `FederatedData.spans`."""
        present = columns["input_ids"].numpy() != NO_TOKEN
        width = present.shape[1]
        answered = "labels" in columns and columns["labels"].ndim == 2 and self.task in WITHOUT_NUMBERED_LABELS
        ends = np.full(len(present), width) if answered else width - present[:, ::-1].argmax(1)
        return np.stack([present.argmax(1), ends], axis=1)

    def transform(self, batch: dict[str, Tensor], draws: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Fills gaps with padding and masks them; see `FederatedData.transform`."""
        tokens = batch["input_ids"].long()
        present = tokens != NO_TOKEN
        assert self.pad_token_id is not None
        filled = tokens.masked_fill(~present, self.pad_token_id)
        inputs = {**batch, "input_ids": filled, "attention_mask": present.long()}
        if "token_type_ids" in batch:
            inputs["token_type_ids"] = batch["token_type_ids"].long()
        return inputs
