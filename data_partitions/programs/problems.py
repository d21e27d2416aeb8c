"""HumanEval and MBPP: problems whose answers are programs, right where they pass tests.

`sandbox` runs the programs. What is made here is text: the prompt, and a whole program around an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from data_partitions.errors import DataError
from data_partitions.reading.columns import is_local, load_columns

BODY_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")
"""What follows the body of a function. Source: Chen et al. 2021, Section 2 (but for the fence)."""
PROGRAM_ENDS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```", "\n[DONE]")
"""What follows a whole solution. Source: bigcode-evaluation-harness, MBPP; [DONE] from Austin et al. 2021."""
MBPP_PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
    "{tests}\n[BEGIN]\n"
)
"""Source: Austin et al., "Program Synthesis with Large Language Models", 2021, and the data set's README."""
MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
"""First and last task_id of each split. Source: the data set's README and the hub's google-research-datasets/mbpp."""

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?=^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"\s*^(?:  |\t)", re.MULTILINE)
_PROGRAM = re.compile(r"\s*^(?:def|class|import|from|async def|@)", re.MULTILINE)
_DEFINITION = re.compile(r"^(?:def|class|async def) ", re.MULTILINE)


@dataclass(frozen=True)
class CodeProblem:
    """One problem.

    Args:
        task_id: its name, such as "HumanEval/0" or "MBPP/11".
        prompt: what the model is asked with; its answer follows at once.
        reference: an answer that is right, by the data set's own word.
        before: what stands before an answer in the program: HumanEval's prompt, of which the answer is the rest.
        after: what stands behind it: the tests.
    """

    task_id: str
    prompt: str
    reference: str
    before: str = field(repr=False)
    after: str = field(repr=False)

    def program(self, completion: str) -> str:
        """Puts a completion, cut already, into the program that tests it.

        Source: HumanEval's execution.py; for MBPP the order of its fields code, test_setup_code, test_list.
        """
        return f"{self.before}{completion}\n{self.after}"


def load_humaneval(path: str = "openai/openai_humaneval", *, key: str = "data.path") -> tuple[CodeProblem, ...]:
    """Reads HumanEval.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", 2021.

    Args:
        path: a folder that holds HumanEval.jsonl.gz (or a file `test`, as in a clone from the hub), such a file, or a
            hub id.
        key: by which key the user named the path, for errors.

    Returns:
        164 problems, in the file's order.

    Raises:
        DataError: where the data are missing or malformed.
    """
    names = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    rows = _read(path, "HumanEval", "test", names, None, key)
    return tuple(
        CodeProblem(task, prompt, reference, before=prompt, after=f"{test}\ncheck({entry_point})\n")
        for task, prompt, reference, test, entry_point in rows
    )


def load_mbpp(
    path: str = "google-research-datasets/mbpp", split: str = "test", *, key: str = "data.path"
) -> tuple[CodeProblem, ...]:
    """Reads one split of MBPP, in its full version.

    Source: Austin et al., "Program Synthesis with Large Language Models", 2021.

    Args:
        path: a folder that holds mbpp.jsonl with all 974 problems (or files named after the splits, as in a clone from
            the hub), such a file, or a hub id.
        split: "test" (500 problems), "train" (374), "validation" (90) or "prompt" (10, to show to the model).
        key: by which key the user named the path, for errors.

    Returns:
        The problems of the split, in the file's order. Their prompts show all tests but none of the challenging ones.

    Raises:
        DataError: where the data are missing or malformed, or nothing of the split is in them.
    """
    if split not in MBPP_SPLITS:
        raise DataError(f"split is {split!r}, expected one of {', '.join(MBPP_SPLITS)}: give one of them")
    first, last = MBPP_SPLITS[split]
    names = ("task_id", "text", "code", "test_setup_code", "test_list")
    rows = [row for row in _read(path, "mbpp", split, names, "full", key) if first <= row[0] <= last]
    if not rows:
        raise DataError(f"{key} {path!r} has no task_id from {first} to {last}, expected {split}'s: give all of MBPP")
    problems = []
    for task, text, code, setup, tests in rows:
        shown, reference = "\n".join(tests), code.replace("\r\n", "\n")
        prompt = MBPP_PROMPT.format(text=text, tests=shown)
        problems.append(CodeProblem(f"MBPP/{task}", prompt, reference, before="", after=f"{setup}\n{shown}\n"))
    return tuple(problems)


def cut_completion(answer: str) -> str:
    """Takes the code out of what a model wrote, which seldom knows where to stop.

    An answer whose first line is indented is the body of a function and ends with it. One that begins with code ends,
    behind its first definition, before whatever is no part of a solution. In any other the first block between fences
    that defines a function is the code, or the first block: so answer models that were taught to chat. Behind
    HumanEval's prompt a whole function is as good as a body, since it replaces the one that the prompt has begun.

    Args:
        answer: all that was written behind the prompt.

    Returns:
        The code; as it was where nothing of this is to be seen.
    """
    if _INDENTED.match(answer):
        return _cut(answer, BODY_ENDS)
    blocks = [] if _PROGRAM.match(answer) else _FENCE.findall(answer)
    if blocks:
        return str(next((block for block in blocks if "def " in block), blocks[0]))
    first = _DEFINITION.search(answer)
    return _cut(answer, PROGRAM_ENDS, first.end() if first else 0)


def _cut(text: str, ends: tuple[str, ...], start: int = 0) -> str:
    """The text up to the first of some ends behind a start."""
    return text[: min((at for end in ends if (at := text.find(end, start)) >= 0), default=len(text))]


def _read(path: str, own_name: str, split: str, names: tuple[str, ...], config: str | None, key: str) -> list[tuple]:
    """The rows of a split; also out of a file under the name that its makers gave it, which is not a split's."""
    root = Path(path).expanduser()
    if is_local(path) and root.is_file():
        split = root.name.partition(".")[0]
    elif is_local(path) and any(root.glob(f"{own_name}.*")):
        split = own_name
    table = load_columns(path, split, names, config=config, key=key).to_dict()
    for name in names:
        expected = {"task_id": str if own_name == "HumanEval" else int, "test_list": list}.get(name, str)
        wrong = next((row for row, value in enumerate(table[name]) if not isinstance(value, expected)), None)
        if wrong is not None:
            raise DataError(
                f"{key} {path!r} has {table[name][wrong]!r} in {name!r} at row {wrong}, expected a"
                f" {expected.__name__}: give {own_name} as it was published"
            )
    return list(zip(*(table[name] for name in names), strict=True))
