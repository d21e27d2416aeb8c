"""CodeAlpaca and CodeFeedback from written rows: prompts, classes, and programs that run only where they should."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.datasets.code_alpaca import CodeAlpaca
from data_partitions.datasets.code_feedback import CodeFeedback
from data_partitions.errors import DataError
from data_partitions.texts import code_instructions
from data_partitions.texts.code_instructions import asked_of, pass_metrics, read_problems
from data_partitions.texts.tokens import load_tokenizer
from tests.data_partitions.words import save_words

REAL = Path(__file__).resolve().parents[4] / "shared/data"
HEAD = 'def two():\n    """The number 2."""\n'
PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": HEAD,
    "canonical_solution": "    return 2\n",
    "test": "def check(candidate):\n    assert candidate() == 2\n",
    "entry_point": "two",
}
SMALL = {
    "task_id": 11,
    "text": "Write a function that is 2.",
    "code": "def two():\r\n  return 2",
    "test_setup_code": "",
    "test_list": ["assert two() == 2"],
    "challenge_test_list": [],
}
ALPACA = [
    {"instruction": "launch", "input": "orbit", "output": "fast\nengine"},
    {"instruction": "moon", "input": "", "output": "ice"},
]
FEEDBACK = [{"query": q, "answer": "moon", "lang": lang, "resource": "x"} for q, lang in (("ice", "sql"), ("the", "c"))]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(file, "wt") as target:
        target.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("alpaca", "feedback", "tests"):
        (tmp_path / name).mkdir()
    write(tmp_path / "alpaca/train.jsonl.gz", ALPACA)
    write(tmp_path / "feedback/train.jsonl.gz", FEEDBACK)
    write(tmp_path / "tests/HumanEval.jsonl.gz", [PROBLEM, PROBLEM | {"task_id": "HumanEval/1", "entry_point": "no"}])
    write(tmp_path / "tests/mbpp.jsonl.gz", [SMALL | {"task_id": 9}, SMALL, SMALL | {"task_id": 12}])
    # One token a line, so that a program comes out of its tokens as it went in.
    lines = ("def two():", "    return 2", "### Instruction:", "### Input:", "### Response:")
    save_words(tmp_path / "words", words=lines, between=r"\n")
    return tmp_path


def load(kind: Callable[..., DataSet], folder: Path, **arguments: Any) -> FederatedData:
    whole: dict[str, Any] = {
        "path": str(folder / ("alpaca" if kind is CodeAlpaca else "feedback")),
        "test_path": str(folder / "tests"),
        "tokenizer": str(folder / "words"),
        "cache": str(folder / "cache"),
    }
    return kind(**(whole | arguments)).load()


@pytest.fixture
def no_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(program: str) -> bool:
        raise AssertionError(f"ran {program}")

    monkeypatch.setattr(code_instructions, "passes", passes)


@pytest.mark.parametrize("kind", [CodeAlpaca, CodeFeedback])
@pytest.mark.parametrize("test", ["humaneval", "mbpp"])
def test_without_the_flag_nothing_is_written_or_run(kind: Any, test: str, folder: Path, no_program_runs: None) -> None:
    data = load(kind, folder, test=test, samples=10, temperature=0.8)
    assert (data.task, data.writing, data.metrics) == ("generation", None, ())
    assert data.test["row"].tolist() == [0, 1]
    assert data.test["labels"].shape[0] == 2


def test_what_codealpaca_learns(folder: Path) -> None:
    data, tokenizer = load(CodeAlpaca, folder, max_new_tokens=4, max_length=40), load_tokenizer(str(folder / "words"))
    first, second = (tokenizer.decode(row[row >= 0]) for row in data.train["input_ids"])
    instruction = "[start] [unk] ### Instruction:"
    assert first == f"{instruction} launch ### Input: orbit ### Response: fast engine [end]"
    assert second == f"{instruction} moon ### Response: ice [end]"
    assert data.classes is not None
    assert data.classes.tolist() == [0, 0]
    assert tokenizer.decode(data.test["labels"][0].clamp(min=0)).startswith("def two(): [unk]     return 2 [end]")


def test_codefeedback_has_a_class_per_language(folder: Path) -> None:
    data = load(CodeFeedback, folder)
    assert data.classes is not None
    assert [data.label_names[number] for number in data.classes] == ["sql", "c"]


@pytest.mark.parametrize("test", ["humaneval", "mbpp"])
def test_with_the_flag_programs_are_judged_by_their_tests(test: str, folder: Path) -> None:
    """The reference passes; a function that gives 2 by another name, and half a program, do not."""
    data = load(CodeAlpaca, folder, test=test, run_generated_code=True, test_examples=1)
    assert data.writing is not None
    assert data.metrics == ("pass_at_1",)
    assert len(data.test["row"]) == 1
    right = ["def two():\n    return 2", "```python\ndef two():\n    return 2\n```"]
    wrong = ["def three():\n    return 2\n", "def two():\n    return 3", "def two(:"]
    assert [data.writing.is_right(0, text) for text in right + wrong] == [True, True, False, False, False]


def test_metrics_are_those_that_the_samples_allow(folder: Path) -> None:
    expected = {1: ["1"], 9: ["1"], 10: ["1", "10"], 100: ["1", "10", "100"]}
    for samples, ks in expected.items():
        assert pass_metrics(samples) == tuple(f"pass_at_{k}" for k in ks)
    data = load(CodeFeedback, folder, run_generated_code=True, samples=10, temperature=0.8)
    assert data.metrics == ("pass_at_1", "pass_at_10")
    assert data.writing is not None
    assert (data.writing.samples, data.writing.temperature) == (10, 0.8)


def test_how_the_problems_are_asked(folder: Path) -> None:
    asked = asked_of("humaneval", read_problems("humaneval", str(folder / "tests"), 1))
    assert asked.questions[0].endswith(f"### Instruction:\nCreate a Python script for this problem:\n{HEAD.strip()}")
    assert asked.answers == [f"{HEAD}    return 2\n"]
    asked = asked_of("mbpp", read_problems("mbpp", str(folder / "tests"), None))
    assert len(asked.answers) == 2, "of the test split alone"
    assert asked.questions[0].endswith("Your code should pass these tests:\n\nassert two() == 2")
    assert asked.answers[0] == "def two():\n  return 2"


def test_refuses_arguments(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data.test is 'apps', expected humaneval or mbpp"):
        load(CodeAlpaca, folder, test="apps")
    with pytest.raises(DataError, match=r"data.samples is 3 at data.temperature 0"):
        load(CodeFeedback, folder, samples=3)
    write(folder / "alpaca/train.jsonl.gz", [{"instruction": "a", "output": "b"}])
    with pytest.raises(DataError, match="has no column 'input'"):
        load(CodeAlpaca, folder)


@pytest.mark.skipif(not (REAL / "humaneval").is_dir(), reason="the real HumanEval is not beside the checkout")
def test_real_solutions_pass_and_empty_ones_do_not(folder: Path) -> None:
    """Six of each, through tokens; all 164 and 60 of MBPP's passed when this was written."""
    for test in ("humaneval", "mbpp"):
        data = load(
            CodeAlpaca,
            folder,
            test=test,
            test_path=str(REAL / test),
            tokenizer=str(REAL / "models/stories260K"),
            max_length=2048,
            max_new_tokens=1024,
            run_generated_code=True,
            test_examples=6,
        )
        assert data.writing is not None
        tokens = data.test["labels"].masked_fill(data.test["labels"] == -100, 2)[:, None]
        assert data.writing.judge(data.test["row"], tokens).all()
        assert not data.writing.judge(data.test["row"][:2], torch.full_like(tokens[:2], 2)).any()
