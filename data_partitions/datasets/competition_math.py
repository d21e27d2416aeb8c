"""MATH: 12,500 problems of mathematics competitions, solved in LaTeX, scored by what stands in the last box."""

from __future__ import annotations

import os
import re
from pathlib import Path

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.reading.columns import is_local
from data_partitions.texts.instructions import (
    ANSWER,
    Pairs,
    instruction_data,
    numbered,
    read_metamath,
    require_test_examples,
    require_written,
)
from data_partitions.texts.rows import read_rows, require_tokenizer, texts_of
from data_partitions.texts.writing import Writing

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
"""The configurations of the hub's EleutherAI/hendrycks_math."""

BOX = re.compile(r"\\(?:boxed|fbox)(?=[{ ])")
SENTENCE = "The answer is: "
SAME = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
"""What is written in several ways in LaTeX, in the order of replacement."""


class MATH(DataSet):
    """Problems of mathematics competitions in seven subjects, 7,500 for training and 5,000 for testing.

    A language model learns to write the solution behind `Problem: ...` and `Answer:`, without examples in the prompt.
    Evaluated is whether its answer ends in the right result: what stands in its last `\\boxed{}`; where it has none,
    behind the last "The answer is: ", which MetaMathQA teaches. Two results are the same if they are equal after the
    replacements of `normal_form`. An answer without a result, or with an empty one, is wrong.

    Boxes and equality are as in hendrycks/math, `last_boxed_only_string` and `is_equiv`, the prompt as in
    lm-evaluation-harness, task hendrycks_math, "The answer is: " as in MetaMath's evaluation. Unlike the first, a box
    may also be `\\boxed 2`, as it is in a few of the solutions.

    Source: Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset".

    Args:
        path: a hub id with the seven configurations of EleutherAI/hendrycks_math, or a local folder with these as
            folders, or some of them, or with all problems in its own `train` and `test` files (see `load_columns`);
            columns `problem`, `solution` and `type`, the subject, by which partitioners deal.
        train_path: MetaMathQA to train on instead: a hub id such as meta-math/MetaMathQA, or a local folder with a file
            `train`; columns `query`, `response` and `type`, by which partitioners deal. None for the training split of
            `path`.
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        max_length: tokens of problem and solution together; no more than the backbone reads. A problem that has no room
            beside max_new_tokens loses its end.
        max_new_tokens: the most tokens of an answer. Longer ones are cut in training, and written ones end there.
        samples: answers that are written to a test problem; exact match is the mean over all of them.
        temperature: 0 writes the likeliest token each time; more draws, which several samples need.
        test_examples: so many of the test split's first problems are evaluated, seven subjects being taken one after
            another; None for all.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "EleutherAI/hendrycks_math",
        train_path: str | None = None,
        tokenizer: str | None = None,
        max_length: int = 1024,
        max_new_tokens: int = 512,
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
            DataError: where the data are missing or broken, a test solution has no box, or the tokenizer cannot be
                loaded.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        test = self._read("test").first(self.test_examples)
        golds = [_gold(row, solution) for row, solution in enumerate(test.answers)]
        train = self._read("train") if self.train_path is None else read_metamath(self.train_path)

        def is_right(row: int, text: str) -> bool:
            result = final_result(text)
            return bool(result) and normal_form(result or "") == golds[row]

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

    def _read(self, split: str) -> Pairs:
        """A split's problems, solutions and subjects; of all folders or configurations, one after another."""
        problems, solutions, types = [], [], []
        for config in self._configs():
            found = read_rows(self.path, split, ("problem", "solution", "type"), config)
            problems += texts_of(found, split, "problem")
            solutions += texts_of(found, split, "solution")
            types += texts_of(found, split, "type")
        return Pairs(problems, solutions, *numbered(types))

    def _configs(self) -> tuple[str | None, ...]:
        """The subjects to read: on the hub all seven, in a local folder those that it has as folders, if any."""
        if not is_local(self.path):
            return SUBJECTS
        root = Path(os.path.expanduser(self.path))
        folders = tuple(subject for subject in SUBJECTS if (root / subject).is_dir())
        if folders and (files := [file.name for split in ("train", "test") for file in root.glob(f"{split}[.-]*")]):
            raise DataError(
                f"data.path {self.path!r} has the file {files[0]} and the folder {folders[0]}, expected one of"
                f" them: move the other away, as the same problems may be in both"
            )
        return folders or (None,)


def final_result(text: str) -> str | None:
    """Reads the result that an answer ends in, as `MATH` says; None for an answer without any."""
    boxed = _last_box(text)
    if boxed is not None:
        return boxed
    _, found, rest = text.rpartition(SENTENCE)
    return rest.partition(".\n")[0].strip().removesuffix(".").strip("$") if found else None


def normal_form(result: str) -> str:
    """Writes a result such that most ways to write the same become equal.

    Line breaks, spaces, `\\left`, `\\right`, degrees, `\\$`, `\\%` and units in `\\text{ ...}` go (a bare % stays);
    so does a name of at most two characters before the only `=`. `tfrac` and `dfrac` become `frac`, `\\frac12` and
    `1/2` become `\\frac{1}{2}`, `\\sqrt3` becomes `\\sqrt{3}`, `.5` becomes `0.5`, and 0.5 alone a fraction. No value
    is computed.
    """
    for written, usual in SAME:
        result = result.replace(written, usual)
    result = result.partition("\\text{ ")[0].replace("\\%", "")
    result = re.sub(r"^\.", "0.", result.replace(" .", " 0.").replace("{.", "{0."))
    name, equals, value = result.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        result = value
    result = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", result).replace(" ", "")
    result = re.sub(r"\\frac([^{])(?:([^{])|(?={))", _with_braces, result)
    result = "\\frac{1}{2}" if result == "0.5" else result
    return re.sub(r"\A(-?(?:0|[1-9][0-9]*))/(-?(?:0|[1-9][0-9]*))\Z", r"\\frac{\1}{\2}", result)


def _with_braces(fraction: re.Match[str]) -> str:
    above, below = fraction.groups()
    return f"\\frac{{{above}}}" if below is None else f"\\frac{{{above}}}{{{below}}}"


def _last_box(text: str) -> str | None:
    """What stands in the last box; None without a box, or where it is never closed."""
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    inside = text[boxes[-1].end() :].lstrip(" ")
    if not inside.startswith("{"):
        return inside.partition("$")[0].strip()  # a few rows have `\boxed 2`
    depth = 0
    for at, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return inside[1:at]
    return None


def _prompt(problem: str) -> str:
    return f"Problem: {problem}"


def _gold(row: int, solution: str) -> str:
    """The right result of a test problem."""
    result = _last_box(solution)
    if result is None:
        raise DataError(f"test solution at row {row} has no \\boxed{{}}, expected the result in one: correct it")
    return normal_form(result)
