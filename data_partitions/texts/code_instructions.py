"""What data sets of programming instructions share: the problems they are tested on, and programs run for the score."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from data_partitions.errors import DataError
from data_partitions.programs.problems import CodeProblem, cut_completion, load_humaneval, load_mbpp
from data_partitions.programs.sandbox import passes
from data_partitions.texts.instructions import Pairs, as_instruction
from data_partitions.texts.writing import Writing

CodeTest = Literal["humaneval", "mbpp"]

TASK = "Create a Python script for this problem:\n{}"
"""Source: Luo et al. 2024, WizardCoder, and EvalPlus, which ask models tuned on instructions so."""

TEST_PATH = "data.test_path"
"""The key that names the problems, for errors."""


def require_code_test(test: str) -> None:
    """Refuses a word for the problems to be tested on that is none of `CodeTest`, with a DataError."""
    if test not in get_args(CodeTest):
        raise DataError(f"data.test is {test!r}, expected {' or '.join(get_args(CodeTest))}: give one of them")


def read_problems(test: CodeTest, path: str | None, examples: int | None) -> tuple[CodeProblem, ...]:
    """Reads the problems to be tested on.

    Args:
        test: humaneval, 164 problems, or mbpp, the 500 of its test split.
        path: as `load_humaneval` and `load_mbpp` take it; None for the hub's own.
        examples: so many of the first; None for all.

    Raises:
        DataError: where they are missing or malformed.
    """
    load = load_humaneval if test == "humaneval" else load_mbpp
    return (load(key=TEST_PATH) if path is None else load(path, key=TEST_PATH))[:examples]


def asked_of(test: CodeTest, problems: tuple[CodeProblem, ...]) -> Pairs:
    """Makes the problems into instructions, and into answers the solutions that their authors give.

    HumanEval's prompt, a function that has only its head, is asked for as it stands, and the answer is the whole
    function: in the form of an instruction a model repeats the head. MBPP's task is asked for with its tests.
    """
    if test == "humaneval":
        tasks, answers = [p.prompt.strip() for p in problems], [f"{p.prompt}{p.reference}" for p in problems]
    else:
        tasks, answers = [p.prompt.removesuffix("\n[BEGIN]\n") for p in problems], [p.reference for p in problems]
    prompts = [as_instruction(TASK.format(task)) for task in tasks]
    return Pairs(prompts, answers, np.zeros(len(prompts), dtype=np.int64))


def writing_code(
    tokenizer: Any, problems: tuple[CodeProblem, ...], max_new_tokens: int, samples: int, temperature: float
) -> Writing:
    """Has programs written, and run in a sandbox against the problems' tests: see `sandbox` for what its walls hold.

    Args:
        tokenizer: what `load_tokenizer` returned.
        problems: in the order of the test split's rows.
        max_new_tokens: see `Writing`.
        samples: see `Writing`.
        temperature: see `Writing`.
    """

    def is_right(row: int, text: str) -> bool:
        return passes(problems[row].program(cut_completion(text)))

    return Writing(tokenizer, is_right, max_new_tokens, samples, temperature)


def pass_metrics(samples: int) -> tuple[str, ...]:
    """Names pass_at_1, pass_at_10 and pass_at_100, those that so many samples allow."""
    return tuple(f"pass_at_{k}" for k in (1, 10, 100) if k <= samples)
