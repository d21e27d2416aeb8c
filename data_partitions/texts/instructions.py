"""Questions and written answers as a language model reads them: prompts, what is cut, and the columns of generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.errors import DataError
from data_partitions.texts.continuing import cached_continuations, continuation, tokens_before
from data_partitions.texts.rows import read_rows, texts_of
from data_partitions.texts.tokens import NO_TOKEN, TextData, cached_tokens, with_answers
from data_partitions.texts.writing import Writing

if TYPE_CHECKING:
    from torch import Tensor

ANSWER = "\nAnswer:"
RESPONSE = "\n\n### Response:\n"
"""What a prompt ends with, for questions and for instructions; an answer is written behind it."""

LEAST_PROMPT = 16
"""The fewest tokens that lengths must leave for a prompt."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Questions of one split and the answers to learn.

    Args:
        questions: one text a row; made into prompts before tokens are made of them.
        answers: as many.
        classes: the category of each, int64 (N,), zeros where there are none.
        names: of the categories, in the order of their numbers; empty where there are none.
    """

    questions: list[str]
    answers: list[str]
    classes: np.ndarray
    names: tuple[str, ...] = ()

    def first(self, rows: int | None) -> Pairs:
        """Returns the first so many rows, all for None."""
        return Pairs(self.questions[:rows], self.answers[:rows], self.classes[:rows], self.names)

    def ask(self, prompt: Callable[[str], str]) -> Pairs:
        """Returns the same with every question made into a prompt."""
        return replace(self, questions=[prompt(question) for question in self.questions])


def as_instruction(instruction: str, given: str = "") -> str:
    """Makes a prompt, up to `RESPONSE`, of an instruction and of what is given with it, if anything.

    Source: Taori et al. 2023, "Stanford Alpaca", prompts of tatsu-lab/stanford_alpaca; that the response starts on a
    new line is from the column `text` of its data, its training code has none there.
    """
    if not given:
        return (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{instruction}"
        )
    return (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
        f" response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{given}"
    )


def read_pairs(
    path: str,
    split: str,
    columns: tuple[str, str],
    category: str | None = None,
    config: str | None = None,
    key: str = "data.path",
) -> Pairs:
    """Reads questions, answers and perhaps their categories.

    Args:
        path: as `load_columns` takes it.
        split: the split's name.
        columns: of questions and of answers.
        category: the column of categories, which are numbered in sorted order; None for zeros.
        config: as `load_columns` takes it.
        key: what the path was given as, for messages.

    Raises:
        DataError: where the data are missing, broken or no texts, and for a split without rows.
    """
    found = read_rows(path, split, [*columns, *([] if category is None else [category])], config, key=key)
    questions, answers = (texts_of(found, split, column) for column in columns)
    if category is None:
        return Pairs(questions, answers, np.zeros(len(questions), dtype=np.int64))
    return Pairs(questions, answers, *numbered(texts_of(found, split, category)))


def numbered(categories: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers the names of categories in sorted order; returns the numbers, int64 (N,), and the names."""
    names, numbers = np.unique(np.array(categories), return_inverse=True)
    return numbers.astype(np.int64), tuple(names.tolist())


def read_metamath(path: str) -> Pairs:
    """Reads the questions and answers that MetaMathQA made of GSM8K's and MATH's training problems.

    All of its rows are read, whichever of the two they were made of; the category is the column `type`, such as
    GSM_Rephrased or MATH_AnsAug.

    Source: Yu et al. 2024, "MetaMath: Bootstrap Your Own Mathematical Questions for Large Language Models".

    Args:
        path: a hub id such as meta-math/MetaMathQA, or a local folder with a file `train` (see `load_columns`).
    """
    return read_pairs(path, "train", ("query", "response"), "type", key="data.train_path")


def require_written(max_length: int, max_new_tokens: int, samples: int, temperature: float) -> None:
    """Refuses arguments of which no `Writing` can be made, or lengths that leave fewer than 16 tokens for a prompt.

    Raises:
        DataError: for the first of them.
    """
    Writing(None, lambda row, text: False, max_new_tokens, samples, temperature)
    require_whole("data.max_length", max_length, 1, 512)
    if max_length < max_new_tokens + LEAST_PROMPT:
        raise DataError(
            f"data.max_length is {max_length}, expected at least {max_new_tokens + LEAST_PROMPT}, which leaves"
            f" {LEAST_PROMPT} tokens for a question beside data.max_new_tokens: raise it"
        )


def require_test_examples(test_examples: int | None) -> None:
    """Refuses a number of test examples that is neither None nor 1 or more, with a DataError."""
    if test_examples is not None:
        require_whole("data.test_examples", test_examples, 1, 100)


def instruction_data(
    tokenizer: Any,
    train: Pairs,
    test: Pairs,
    closing: str,
    max_length: int,
    max_new_tokens: int,
    cache: str | Path,
    writing: Writing | None,
    metrics: tuple[str, ...],
) -> TextData:
    """Makes the data of the task generation.

    Args:
        tokenizer: what `load_tokenizer` returned; it is set to cut texts at their end.
        train: prompts up to the closing, and answers.
        test: likewise, in the order in which `writing` judges them. Its columns may be of other widths.
        closing: what every prompt ends with, `ANSWER` or `RESPONSE`; whatever is cut, it stays.
        max_length: see `instruction_columns`.
        max_new_tokens: see `instruction_columns`.
        cache: the folder that keeps tokens for the next start, `~` allowed.
        writing: how answers are written and judged; None where they are not.
        metrics: by which the answers are scored, if they are written.

    Returns:
        The data; their notes tell how many questions and answers were cut.

    Raises:
        DataError: as `instruction_columns`.
    """
    import torch

    layout = (closing, max_length, max_new_tokens, cache)
    learned, cut_in_train = instruction_columns(tokenizer, train, *layout)
    asked, cut_in_test = instruction_columns(tokenizer, test, *layout)
    return TextData(
        train=learned,
        test=asked | {"row": torch.arange(len(test.questions))},
        label_names=train.names,
        task="generation",
        classes=train.classes,
        pad_token_id=tokenizer.pad_token_id,
        metrics=metrics if writing is not None else (),
        writing=writing,
        notes=(*cut_in_train.notes("training", "training"), *cut_in_test.notes("test", "reference")),
    )


@dataclass(frozen=True)
class Cut:
    """How much of a split did not fit.

    Attributes:
        rows: of the split.
        questions: so many lost their end.
        answers: so many lost their end, or the end of text behind it.
    """

    rows: int
    questions: int
    answers: int

    def notes(self, questions: str, answers: str) -> Iterator[str]:
        """Says so, a line for each that there is, given a word for whose questions and answers they are."""
        if self.questions:
            yield f"{self.questions:,} of {self.rows:,} {questions} questions lost their end; raise data.max_length"
        if self.answers:
            yield (
                f"{self.answers:,} of {self.rows:,} {answers} answers are longer than data.max_new_tokens and were cut"
            )


def instruction_columns(
    tokenizer: Any, pairs: Pairs, closing: str, max_length: int, max_new_tokens: int, cache: str | Path
) -> tuple[dict[str, Tensor], Cut]:
    """Lays out prompts and answers, the answers in the last columns with the end of text behind them.

    A prompt has room for max_length - max_new_tokens tokens, whatever its answer's length, as a written answer may be
    of any. A longer one loses the end of its question and keeps the closing. A longer answer than max_new_tokens, the
    end of text included, is cut and has no end of text: a model learns nothing about where such an answer ends, and it
    could not write it anyway. Only losses are computed from these tokens; answers are judged by whole texts.

    Args:
        tokenizer: what `load_tokenizer` returned; it is set to cut texts at their end.
        pairs: prompts up to the closing, and answers.
        closing: what every prompt ends with. Where that is no white space, a space stands before the answer.
        max_length: tokens of prompt and answer together.
        max_new_tokens: tokens of an answer.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Returns:
        `input_ids` int32 (N, Q + K), `NO_TOKEN` before a prompt and behind an answer, and `labels` int64 (N, K), K at
        most max_new_tokens; and what was cut.

    Raises:
        DataError: for a tokenizer that ends every text, or lengths without room for a question.
    """
    import torch

    tokenizer.truncation_side = "right"
    before, room = tokens_before(tokenizer), max_length - max_new_tokens
    kept = np.array(continuation(closing, tokenizer), dtype=np.int32)
    if room <= before + len(kept):
        raise DataError(
            f"data.max_length is {max_length}, expected at least {max_length - room + before + len(kept) + 1} for a"
            f" question and data.max_new_tokens {max_new_tokens}: raise it"
        )
    # One token more than there is room for shows which prompts are too long.
    prompts = cached_tokens([f"{text}{closing}" for text in pairs.questions], tokenizer, room + 1, cache)
    too_long = (prompts[:, room:] != NO_TOKEN).any(1)
    prompts = prompts[:, :room].copy()
    if too_long.any():
        prompts[too_long, room - len(kept) :] = kept
    lead = "" if closing[-1:].isspace() else " "
    texts = [f"{lead}{answer}" for answer in pairs.answers]
    answers = cached_continuations(texts, tokenizer, before, max_new_tokens + 1, cache)
    ended, cut = _with_end(answers, tokenizer.eos_token_id, max_new_tokens)
    inputs, labels = with_answers(prompts, ended)
    columns = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
    return columns, Cut(len(texts), int(too_long.sum()), cut)


def _with_end(answers: np.ndarray, end: int | None, longest: int) -> tuple[np.ndarray, int]:
    """Puts the end of text behind every answer that leaves room for it, int32 (N, K); also tells how many do not."""
    lengths = (answers != NO_TOKEN).sum(1)
    # An empty answer is the end of text already where the tokenizer puts nothing before it, see `cached_tokens`.
    done = (lengths == 1) & (answers[:, :1] == end).any(1)
    needed = lengths + (0 if end is None else ~done)
    ended = np.full((len(answers), max(1, min(int(needed.max()), longest))), NO_TOKEN, dtype=np.int32)
    ended[:, : answers.shape[1]] = answers[:, : ended.shape[1]]
    if end is not None:
        rows = np.flatnonzero((lengths < needed) & (needed <= longest))
        ended[rows, lengths[rows]] = end
    return ended, int((needed > longest).sum())
