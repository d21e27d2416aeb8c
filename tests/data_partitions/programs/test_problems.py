"""HumanEval and MBPP from files under their own names and the hub's, cut answers, and the real problems run."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from data_partitions.errors import DataError
from data_partitions.programs.problems import MBPP_SPLITS, CodeProblem, cut_completion, load_humaneval, load_mbpp
from data_partitions.programs.sandbox import passes

REAL = Path(__file__).resolve().parents[4] / "shared/data"
BODY = "    return a + b\n"
ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """The sum."""\n',
    "canonical_solution": BODY,
    "test": "\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}


def tree(task: int, **other: Any) -> dict[str, Any]:
    row = {
        "text": "Count the tree.",
        "code": "class Node:\r\n    size = 1\r\ndef count(tree):\r\n    return tree.size",
        "task_id": task,
        "test_setup_code": "root = Node()",
        "test_list": ["assert count(root) == 1", "assert count(Node) == 1", "assert count(Node()) == 1"],
        "challenge_test_list": [],
    }
    return row | other


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    else:
        with gzip.open(file, "wt") if file.suffix == ".gz" else file.open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    return file


@pytest.mark.parametrize("name", ["HumanEval.jsonl.gz", "openai_humaneval/test-00000-of-00001.parquet", "test.jsonl"])
def test_humaneval(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [ADD])
    (problem,) = load_humaneval(str(tmp_path))
    assert load_humaneval(str(file)) == (problem,)
    assert (problem.task_id, problem.prompt, problem.reference) == ("HumanEval/0", ADD["prompt"], BODY)
    assert problem.program(BODY) == f"{ADD['prompt']}{BODY}\n{ADD['test']}\ncheck(add)\n"
    assert [passes(problem.program(answer)) for answer in (BODY, "", "    return a\n")] == [True, False, False]


@pytest.mark.parametrize("name", ["mbpp.jsonl", "full/test-00000-of-00001.parquet"])
def test_mbpp(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [tree(11)])
    (problem,) = load_mbpp(str(tmp_path))
    assert load_mbpp(str(file)) == (problem,)
    tests = "assert count(root) == 1\nassert count(Node) == 1\nassert count(Node()) == 1\n"
    assert problem.task_id == "MBPP/11"
    assert problem.prompt == (
        "You are an expert Python programmer, and here is your task: Count the tree. Your code should pass these tests:"
        f"\n\n{tests}[BEGIN]\n"
    )
    assert problem.reference == "class Node:\n    size = 1\ndef count(tree):\n    return tree.size"
    assert problem.program("x") == f"x\nroot = Node()\n{tests}"
    assert passes(problem.program(problem.reference))
    assert not passes(problem.program(problem.reference.replace("= 1", "= 2")))


def test_splits_of_mbpp_are_ranges_of_its_numbers(tmp_path: Path) -> None:
    write(tmp_path / "mbpp.jsonl", [tree(task) for task in range(1, 975)])
    found = {split: [problem.task_id for problem in load_mbpp(str(tmp_path), split)] for split in MBPP_SPLITS}
    assert {split: (len(tasks), tasks[0]) for split, tasks in found.items()} == {
        "prompt": (10, "MBPP/1"),
        "test": (500, "MBPP/11"),
        "validation": (90, "MBPP/511"),
        "train": (374, "MBPP/601"),
    }


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        ([tree(1)], "test", "has no task_id from 11 to 510, expected test's"),
        ([tree(11)], "tests", "split is 'tests', expected one of prompt, test, validation, train"),
        ([tree(11, test_list="assert True")], "test", "has 'assert True' in 'test_list' at row 0, expected a list"),
        ([tree(11), tree(12, code=None)], "test", "has no 'code' at row 1"),
        ([{"task_id": 11, "prompt": "Count."}], "test", "has no column 'text'"),
    ],
)
def test_refuses_malformed_rows(tmp_path: Path, rows: list[dict[str, Any]], split: str, message: str) -> None:
    write(tmp_path / "mbpp.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_mbpp(str(tmp_path), split)


def test_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no file for the split test"):
        load_humaneval(str(tmp_path))
    file = write(tmp_path / "HumanEval.jsonl.gz", [ADD | {"task_id": 0}])
    with pytest.raises(DataError, match="has 0 in 'task_id' at row 0, expected a str: give HumanEval"):
        load_humaneval(str(file))


WHOLE = "import math\n\ndef add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (BODY, BODY),
        ("", ""),
        (BODY + "\ndef more(): pass", BODY),
        (BODY + "    if a:\n        print(a)\n\nif a:\n", BODY + "    if a:\n        print(a)\n"),
        (BODY + "\n# So it is.", BODY),
        (BODY + "\n\nclass A: pass\n\nprint(1)", BODY + "\n"),
        (BODY + "```\nExplained:\n```python\nadd(1, 2)\n```", BODY[:-1]),
        ("\n\n\treturn a\n\nprint(1)", "\n\n\treturn a\n"),
        (WHOLE, WHOLE),
        (WHOLE + "\ndef more(): pass\nassert add(1, 2) == 3\n", WHOLE + "\ndef more(): pass"),
        (WHOLE + "[DONE]\n\nYou are", WHOLE[:-1]),
        (WHOLE + "```\nExplained:\n```python\nadd(1, 2)\n```", WHOLE[:-1]),
        ("import heapq\nclass Node:\n    pass\n\nif True:\n    pass", "import heapq\nclass Node:\n    pass\n"),
        (f"Here it is:\n```python\n{WHOLE}```\nIt adds.", WHOLE),
        (f"```\n{WHOLE}```", WHOLE),
        (f"Cut short:\n```py\n{WHOLE}", WHOLE),
        (f"First\n```sh\npip install add\n```\nthen\n  ```python\n{WHOLE}  ```", WHOLE),
        (f"The body:\n```python\n{BODY}```", BODY),
        ("No code at all.", "No code at all."),
    ],
)
def test_cut_completion(answer: str, expected: str) -> None:
    assert cut_completion(answer) == expected


def test_a_whole_function_is_as_good_as_a_body(tmp_path: Path) -> None:
    (problem,) = load_humaneval(str(write(tmp_path / "HumanEval.jsonl", [ADD])))
    assert passes(problem.program(cut_completion(f"Sure!\n```python\n{WHOLE}```\n")))


def wrong(problems: tuple[CodeProblem, ...], answers: list[str]) -> list[str]:
    programs = [problem.program(answer) for problem, answer in zip(problems, answers, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        return [p.task_id for p, right in zip(problems, pool.map(passes, programs), strict=True) if not right]


def needs(name: str) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"the real {name} is not beside the checkout")


def only_on_request(request: pytest.FixtureRequest) -> None:
    if "slow" not in request.config.getoption("-m"):
        pytest.skip("hundreds of programs; run on request with -m slow")


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_the_real_humaneval(every: int, request: pytest.FixtureRequest) -> None:
    """Every solution passes, and no empty answer does; no solution is cut."""
    needs("humaneval")
    if every == 1:
        only_on_request(request)
    problems = load_humaneval(str(REAL / "humaneval"))
    assert len(problems) == 164
    assert all(cut_completion(problem.reference) == problem.reference for problem in problems)
    problems = problems[::every]
    assert wrong(problems, [problem.reference for problem in problems]) == []
    assert wrong(problems, [""] * len(problems)) == [problem.task_id for problem in problems]


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_the_real_mbpp(every: int, request: pytest.FixtureRequest) -> None:
    """All 974 solutions pass their own tests; none is cut."""
    needs("mbpp")
    if every == 1:
        only_on_request(request)
    problems = tuple(problem for split in MBPP_SPLITS for problem in load_mbpp(str(REAL / "mbpp"), split))
    assert len({problem.task_id for problem in problems}) == 974
    assert all(cut_completion(problem.reference) == problem.reference for problem in problems)
    problems = problems[::every]
    assert wrong(problems, [problem.reference for problem in problems]) == []
