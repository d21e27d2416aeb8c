"""CodeFeedback: some 157,000 programming questions with a language each, tested on HumanEval or MBPP."""

from __future__ import annotations

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.texts.code_instructions import (
    CodeTest,
    asked_of,
    pass_metrics,
    read_problems,
    require_code_test,
    writing_code,
)
from data_partitions.texts.instructions import (
    RESPONSE,
    as_instruction,
    instruction_data,
    read_pairs,
    require_test_examples,
    require_written,
)
from data_partitions.texts.rows import require_tokenizer


class CodeFeedback(DataSet):
    """Programming questions, some 157,000 for training, each of one language; tested on Python problems of other data.

    A language model learns to write the answer behind Alpaca's prompt. HumanEval's or MBPP's problems are put into the
    same prompt, see `asked_of`. What the model writes there is a program, and it is judged by running it. As such a
    program may do anything, that is done only with run_generated_code; the score then is pass_at_1, with 10 and 100
    samples also pass_at_10 and pass_at_100. Without it nothing is written, and the loss of the problems' reference
    solutions is all that is reported.

    Source: Zheng et al. 2024, "OpenCodeInterpreter: Integrating Code Generation with Execution and Refinement", the
    filtered single questions; prompts as in Stanford Alpaca.

    Args:
        path: a local folder with a file `train` (see `load_columns`) or a hub id; columns `query`, `answer` and `lang`,
            the language, by which partitioners deal.
        test: humaneval, 164 problems, or mbpp, the 500 of its test split.
        test_path: where these are, a local folder or file or a hub id; None for openai/openai_humaneval or
            google-research-datasets/mbpp.
        run_generated_code: runs the programs that the model writes, on this machine. The sandbox around them holds off
            accidents, no attacks; see `data_partitions/programs/sandbox.py` before you switch it on.
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        max_length: tokens of prompt and answer together; no more than the backbone reads. A question that has no
            room beside max_new_tokens loses its end.
        max_new_tokens: the most tokens of an answer. Longer ones are cut in training, and written ones end there.
        samples: programs that are written for a test problem.
        temperature: 0 writes the likeliest token each time; more draws, which several samples need.
        test_examples: so many of the test's first problems are evaluated; None for all.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "m-a-p/CodeFeedback-Filtered-Instruction",
        test: CodeTest = "humaneval",
        test_path: str | None = None,
        run_generated_code: bool = False,
        tokenizer: str | None = None,
        max_length: int = 1024,
        max_new_tokens: int = 512,
        samples: int = 1,
        temperature: float = 0.0,
        test_examples: int | None = None,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        require_code_test(test)
        require_written(max_length, max_new_tokens, samples, temperature)
        require_test_examples(test_examples)
        self.path = path
        self.test = test
        self.test_path = test_path
        self.run_generated_code = run_generated_code
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self.samples = samples
        self.temperature = temperature
        self.test_examples = test_examples
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads and tokenises questions and problems.

        Returns:
            The task generation: input_ids int32 (N, Q + K), which `transform` turns into input_ids and attention_mask
            int64 (B, Q + K), and labels int64 (N, K), the tokens that the last K columns should have; for testing also
            row int64 (N,). Nobody is named as the writer.

        Raises:
            DataError: where the data are missing or broken, or the tokenizer cannot be loaded.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        problems = read_problems(self.test, self.test_path, self.test_examples)
        written = (self.max_new_tokens, self.samples, self.temperature)
        return instruction_data(
            tokenizer,
            read_pairs(self.path, "train", ("query", "answer"), "lang").ask(as_instruction),
            asked_of(self.test, problems),
            RESPONSE,
            self.max_length,
            self.max_new_tokens,
            self.cache,
            writing_code(tokenizer, problems, *written) if self.run_generated_code else None,
            pass_metrics(self.samples),
        )
