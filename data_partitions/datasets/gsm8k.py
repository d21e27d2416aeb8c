"""GSM8K: 8,792 word problems of grade school mathematics, solved in words, scored by the number that comes out."""

from __future__ import annotations

import re
from fractions import Fraction

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.texts.instructions import (
    ANSWER,
    instruction_data,
    read_metamath,
    read_pairs,
    require_test_examples,
    require_written,
)
from data_partitions.texts.rows import require_tokenizer
from data_partitions.texts.writing import Writing

NUMBER = re.compile(
    r"(?:(?<![0-9.)%])-)?"  # the minus of a number, but not the one in 7-5
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]*[1-9][0-9]*)?"
)
MARK = re.compile(r"####\s*")
SENTENCE = re.compile(r"[Tt]he answer is:?\s*")
LONGEST_NUMBER = 300
"""Characters of a number that is read: a model that repeats a digit writes none, and Python reads no endless ones."""


class GSM8K(DataSet):
    """Word problems of grade school mathematics, 7,473 for training and 1,319 for testing.

    A language model learns to write the solution, the calculator's annotations (`<<6*2=12>>`) and the final line
    `#### 12` included, behind `Question: ...` and `Answer:`, without examples in the prompt. Evaluated is whether the
    number that its answer ends in is the right one: the first directly behind a `####`; where there is none, the first
    on the line of one; then the last behind "The answer is", which MetaMathQA teaches; then the last of the text.
    Numbers are compared exactly, 1,200.0 and $1200 being the same.

    Unlike here, lm-evaluation-harness gives five examples with each question, counts the first number behind `####` and
    the last of the text as two metrics, compares numbers as texts, and also ends an answer at "Question:".

    Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems"; prompt and numbers as in
    lm-evaluation-harness, task gsm8k.

    Args:
        path: a local folder with `train` and `test` files (see `load_columns`) or a hub id; columns `question` and
            `answer`.
        train_path: MetaMathQA to train on instead: a hub id such as meta-math/MetaMathQA, or a local folder with a file
            `train`; columns `query`, `response` and `type`, by which partitioners deal. None for the training split of
            `path`, all of one class.
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        max_length: tokens of question and answer together; no more than the backbone reads. A question that has no room
            beside max_new_tokens loses its end.
        max_new_tokens: the most tokens of an answer. Longer ones are cut in training, and written ones end there.
        samples: answers that are written to a test question; exact match is the mean over all of them.
        temperature: 0 writes the likeliest token each time; more draws, which several samples need.
        test_examples: so many of the test split's first questions are evaluated; None for all.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "openai/gsm8k",
        train_path: str | None = None,
        tokenizer: str | None = None,
        max_length: int = 512,
        max_new_tokens: int = 256,
        samples: int = 1,
        temperature: float = 0.0,
        test_examples: int | None = None,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        require_written(max_length, max_new_tokens, samples, temperature)
        require_test_examples(test_examples)
        self.path = path
        self.train_path = train_path
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self.samples = samples
        self.temperature = temperature
        self.test_examples = test_examples
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads and tokenises both splits.

        Returns:
            The task generation, scored by exact_match: input_ids int32 (N, Q + K), which `transform` turns into
            input_ids and attention_mask int64 (B, Q + K), and labels int64 (N, K), the tokens that the last K columns
            should have; for testing also row int64 (N,). Nobody is named as the writer.

        Raises:
            DataError: where the data are missing or broken, a test answer has no number behind ####, or the tokenizer
                cannot be loaded.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        columns = ("question", "answer")
        test = read_pairs(self.path, "test", columns, config="main").first(self.test_examples)
        golds = [_gold(row, answer) for row, answer in enumerate(test.answers)]
        if self.train_path is None:
            train = read_pairs(self.path, "train", columns, config="main")
        else:
            train = read_metamath(self.train_path)

        def is_right(row: int, text: str) -> bool:
            return final_number(text) == golds[row]

        return instruction_data(
            tokenizer,
            train.ask(_prompt),
            test.ask(_prompt),
            ANSWER,
            self.max_length,
            self.max_new_tokens,
            self.cache,
            Writing(tokenizer, is_right, self.max_new_tokens, self.samples, self.temperature),
            ("exact_match",),
        )


def final_number(text: str) -> Fraction | None:
    """Reads the number that an answer ends in, as `GSM8K` says; None for an answer without any.

    Commas between thousands, dollar and percent signs, and zeros and dots at the end change nothing; `3/4` is a number.
    """
    text = text.replace("$", "").replace("−", "-")
    for mark in MARK.finditer(text):
        if found := NUMBER.match(text, mark.end()):
            return _value(found[0])
    for marks in (list(MARK.finditer(text)), list(SENTENCE.finditer(text))[::-1]):
        for mark in marks:
            line_end = text.find("\n", mark.end())
            if found := NUMBER.search(text, mark.end(), len(text) if line_end < 0 else line_end):
                return _value(found[0])
    numbers = NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def _prompt(question: str) -> str:
    return f"Question: {question}"


def _value(number: str) -> Fraction | None:
    if len(number) > LONGEST_NUMBER:
        return None
    above, _, below = number.replace(",", "").partition("/")
    return Fraction(above) / int(below or 1)


def _gold(row: int, answer: str) -> Fraction:
    """The right number of a test question."""
    number = final_number(answer) if MARK.search(answer) else None
    if number is None:
        raise DataError(f"test answer at row {row} has no number behind ####, expected e.g. '#### 18': correct it")
    return number
