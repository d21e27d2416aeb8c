"""MATH from written rows: which results are read, which are the same, and folders of subjects."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_partitions.dataset import FederatedData
from data_partitions.datasets.competition_math import MATH, final_result, normal_form
from data_partitions.errors import DataError
from data_partitions.texts.tokens import load_tokenizer
from tests.data_partitions.words import save_words


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (r"so $\boxed{1}$ or rather $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{3}", "3"),
        (r"$\boxed 2$ people", "2"),
        (r"\boxed {x}", "x"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{}", ""),
        (r"\boxed{3}. The answer is: 4", "3"),
        ("The answer is: 3.\nThe answer is: \\frac12.\nWell.", r"\frac12"),
        ("The answer is: $x$.", "x"),
        ("it is 3", None),
    ],
)
def test_the_result_that_an_answer_ends_in(text: str, result: str | None) -> None:
    assert final_result(text) == result


SAME = [
    (r"\frac12", r"\dfrac{1}{2}", "1/2", "0.5", ".5", r"x=\tfrac12"),
    (r"\frac1{72}", r"\frac{1}{72}", "1/72", "k = 1/72"),
    (r"3\sqrt2", r"3 \sqrt{2}"),
    ("90", r"90^\circ", r"90^{\circ}", r"90\%", r"\$90", r"90\text{ degrees}", "\n90\\!"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    ("0.25", ".25"),
]


@pytest.mark.parametrize("written", SAME)
def test_ways_to_write_the_same(written: tuple[str, ...]) -> None:
    assert {normal_form(way) for way in written} == {normal_form(written[0])}


def test_results_that_differ_stay_different() -> None:
    every = [normal_form(group[0]) for group in SAME]
    others = ["90%", "2", "-2", r"\frac{2}{1}", "1.0", "1", "abc=2", "a/b", "01/2", "", r"\frac", r"\sqrt"]
    assert len({*every, *map(normal_form, others)}) == len(every) + len(others)


@given(st.text("\\frac{}sqrt12/.=-% $tex", max_size=12))
@settings(max_examples=30)
def test_whatever_a_model_writes_is_read(text: str) -> None:
    """Nothing raises; what stands in a box with its braces closed comes out whole."""
    normal_form(text)
    final_result(text)
    depths = [text[:end].count("{") - text[:end].count("}") for end in range(len(text) + 1)]
    if min(depths) >= 0 and depths[-1] == 0:
        assert final_result(f"so \\boxed{{{text}}}") == text


ROWS = [("moon", "it is $\\boxed{\\frac12}$", "Geometry"), ("ice", "so so \\boxed{7}", "Algebra")]


def write(folder: Path, split: str, rows: list[tuple[str, str, str]]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"problem": p, "level": "Level 1", "type": t, "solution": s}) for p, s, t in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def load(folder: Path, **arguments: Any) -> FederatedData:
    words = save_words(folder / "words", words=("Problem:", "Answer:", "7", "1/2"))
    whole: dict[str, Any] = {"path": str(folder), "tokenizer": str(words), "cache": str(folder / "cache")}
    return MATH(**(whole | arguments)).load()


def test_one_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, split, ROWS)
    data = load(tmp_path)
    assert data.classes is not None
    assert data.classes.tolist() == [1, 0]
    text = load_tokenizer(str(tmp_path / "words")).decode(data.train["input_ids"][1])
    assert text == "[start] Problem: ice Answer: [unk] [unk] [unk] [end]"
    assert (data.task, data.metrics, data.test["row"].tolist()) == ("generation", ("exact_match",), [0, 1])
    assert data.writing is not None
    for row, answer, right in (
        (0, r"\boxed{0.5}", True),
        (0, "The answer is: 1/2.", True),
        (1, r"\boxed{0.5}", False),
        (1, "7", False),
        (1, r"\boxed{}", False),
    ):
        assert data.writing.is_right(row, answer) == right
    assert data.writing.judge(torch.tensor([1]), torch.tensor([[[3]]])).tolist() == [[False]]
    assert load(tmp_path, test_examples=1).test["row"].tolist() == [0]


def test_a_folder_of_all_seven_subjects(tmp_path: Path) -> None:
    subjects = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory")
    for name in (*subjects, "prealgebra", "precalculus"):
        for split in ("train", "test"):
            write(tmp_path / name, split, [(f"{name} moon", f"\\boxed{{{len(name)}}}", name.title())])
    data = load(tmp_path)
    assert data.classes is not None
    assert data.classes.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.writing is not None
    assert data.writing.is_right(6, r"\boxed{11}")
    assert data.label_names[:2] == ("Algebra", "Counting_And_Probability")
    (tmp_path / "geometry" / "test.jsonl").unlink()
    with pytest.raises(DataError, match="geometry"):
        load(tmp_path)


def test_some_subjects_are_read_once_and_not_beside_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "algebra", split, ROWS[1:])
        write(tmp_path / "geometry", split, ROWS[:1])
    data = load(tmp_path)
    assert data.classes is not None
    assert (data.label_names, data.classes.tolist()) == (("Algebra", "Geometry"), [0, 1])
    assert data.test["row"].tolist() == [0, 1]
    write(tmp_path, "test", ROWS)
    with pytest.raises(DataError, match=r"has the file test.jsonl and the folder algebra, expected one of them"):
        load(tmp_path)


def test_training_on_metamath(tmp_path: Path) -> None:
    write(tmp_path, "test", ROWS)
    (tmp_path / "meta").mkdir()
    row = {"type": "MATH_SV", "query": "ice", "response": "The answer is: 7"}
    (tmp_path / "meta" / "train.jsonl").write_text(json.dumps(row))
    data = load(tmp_path, train_path=str(tmp_path / "meta"))
    assert (len(data.train["labels"]), len(data.test["labels"])) == (1, 2)


def test_refuses_a_test_solution_without_a_box(tmp_path: Path) -> None:
    write(tmp_path, "train", ROWS)
    write(tmp_path, "test", [*ROWS, ("ice", "it is 7", "Algebra")])
    with pytest.raises(DataError, match=r"test solution at row 2 has no \\boxed\{\}, expected the result in one"):
        load(tmp_path)
