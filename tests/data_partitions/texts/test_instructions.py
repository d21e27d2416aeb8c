"""Prompts and answers laid out: what stands where, what is cut and what never is."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from data_partitions.errors import DataError
from data_partitions.texts.instructions import (
    ANSWER,
    RESPONSE,
    Cut,
    Pairs,
    as_instruction,
    instruction_columns,
    instruction_data,
    read_metamath,
    read_pairs,
    require_test_examples,
    require_written,
)
from data_partitions.texts.tokens import NO_TOKEN, load_tokenizer
from tests.data_partitions.words import save_words

LONG = "the engine rides fast over the moon"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return load_tokenizer(str(save_words(tmp_path / "words", words=("Answer:", "Response:", "###", "over"))))


def pairs(*rows: tuple[str, str]) -> Pairs:
    questions, answers = zip(*rows, strict=True)
    return Pairs(list(questions), list(answers), np.zeros(len(rows), dtype=np.int64))


def lay_out(tokenizer: Any, given: Pairs, folder: Path, closing: str = ANSWER, **lengths: int) -> tuple[Any, Any]:
    """The texts of the inputs and of the labels, and the columns."""
    whole: dict[str, Any] = {"max_length": 32, "max_new_tokens": 16, "cache": folder / "cache", "closing": closing}
    columns, _ = instruction_columns(tokenizer, given, **(whole | lengths))
    texts = [
        [tokenizer.decode([token for token in row.tolist() if token >= 0]) for row in columns[name]]
        for name in ("input_ids", "labels")
    ]
    return texts, columns


def test_an_answer_stands_in_the_last_columns_and_ends(tokenizer: Any, tmp_path: Path) -> None:
    texts, columns = lay_out(tokenizer, pairs(("the goalie", "saves"), ("orbit", "fast moon")), tmp_path)
    assert texts[0] == ["[start] the goalie Answer: saves [end]", "[start] orbit Answer: fast moon [end]"]
    assert texts[1] == ["saves [end]", "fast moon [end]"]
    ids, labels = columns["input_ids"], columns["labels"]
    assert (ids.dtype, labels.dtype) == (torch.int32, torch.int64)
    assert ids.shape == (2, 4 + 3)
    assert ids[0, -4] >= 0, "prompts end where answers begin"
    assert ids[1, 0] == NO_TOKEN
    assert labels[0, 2] == -100
    assert ids[0, -1] == NO_TOKEN
    torch.testing.assert_close(ids[:, -3:].long().clamp(min=0), labels.clamp(min=0))


def test_a_long_question_loses_its_end_and_keeps_the_closing(tokenizer: Any, tmp_path: Path) -> None:
    """Room for eight tokens, whatever the answer; nine words and their start are too many, seven just fit."""
    given = pairs((f"{LONG} ice ice", "saves"), (f"{LONG} ice ice", LONG), ("the engine rides fast over ice", "moon"))
    texts, columns = lay_out(tokenizer, given, tmp_path, max_length=16, max_new_tokens=8)
    assert [text.partition(" Answer:")[0] for text in texts[0]] == [
        "[start] the engine rides fast over the",
        "[start] the engine rides fast over the",
        "[start] the engine rides fast over ice",
    ]
    assert columns["input_ids"].shape == (3, 16)
    assert all(" Answer: " in text for text in texts[0])


def test_a_long_answer_is_cut_without_an_end(tokenizer: Any, tmp_path: Path) -> None:
    """Seven words: with the end they take eight tokens; in seven there is none, in six the last word is lost."""
    for room, expected in ((8, f"{LONG} [end]"), (7, LONG), (6, LONG.removesuffix(" moon"))):
        texts, columns = lay_out(tokenizer, pairs(("ice", LONG), ("ice", "ice")), tmp_path, max_new_tokens=room)
        assert texts[1] == [expected, "ice [end]"]
        assert columns["labels"].shape == (2, room)


@pytest.mark.parametrize("with_start", [True, False])
def test_an_empty_answer_is_the_end_alone(tokenizer: Any, tmp_path: Path, with_start: bool) -> None:
    if not with_start:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    texts, _ = lay_out(tokenizer, pairs(("ice", ""), ("ice", "moon")), tmp_path, closing=RESPONSE)
    assert texts[1] == ["[end]", "moon [end]"]
    texts, _ = lay_out(tokenizer, pairs(("ice", "[end] the"), ("ice", "moon [end]")), tmp_path, closing=RESPONSE)
    assert texts[1] == ["[end] the [end]", "moon [end] [end]"]
    texts, columns = lay_out(tokenizer, pairs(("ice", ""), ("moon", "")), tmp_path, closing=RESPONSE)
    assert texts[1] == ["[end]", "[end]"]
    assert columns["labels"].shape == (2, 1)


def test_a_tokenizer_without_an_end_writes_none(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_words(tmp_path / "words", end=None, words=("Answer:",))))
    texts, _ = lay_out(tokenizer, pairs(("ice", "moon")), tmp_path)
    assert texts[1] == ["moon"]


def test_a_tokenizer_that_cuts_or_ends_texts_its_own_way(tokenizer: Any, tmp_path: Path) -> None:
    """One that would cut the beginning is told otherwise; one that ends every text is refused."""
    tokenizer.truncation_side = "left"
    texts, _ = lay_out(tokenizer, pairs(("ice", LONG)), tmp_path, max_new_tokens=3)
    assert texts[1] == ["the engine rides"]
    start, end = (tokenizer.convert_tokens_to_ids(word) for word in ("[start]", "[end]"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]", special_tokens=[("[start]", start), ("[end]", end)]
    )
    with pytest.raises(DataError, match=r"data.tokenizer puts a token behind every text, expected none"):
        lay_out(tokenizer, pairs(("ice", "moon")), tmp_path)


def test_a_closing_without_room_for_a_question_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.max_length is 8, expected at least 9 for a question .* 5: raise it"):
        lay_out(tokenizer, pairs(("ice", "moon")), tmp_path, closing=RESPONSE, max_length=8, max_new_tokens=5)
    texts, _ = lay_out(tokenizer, pairs((LONG, "moon")), tmp_path, RESPONSE, max_length=9, max_new_tokens=5)
    assert texts[0] == ["[start] the ### Response: moon [end]"]


def test_the_data_of_the_task(tokenizer: Any, tmp_path: Path) -> None:
    """Splits of different widths; the test split is numbered; a second start makes no tokens."""
    train, test = pairs((LONG, "saves fast"), ("orbit", "ice")), pairs(("moon", "ice"))
    arguments: tuple[Any, ...] = (ANSWER, 32, 16, tmp_path / "cache", None, ("exact_match",))
    data = instruction_data(tokenizer, train, test, *arguments)
    assert (data.train["input_ids"].shape, data.test["input_ids"].shape) == ((2, 12), (1, 5))
    assert data.test["row"].tolist() == [0]
    assert data.test["row"].dtype == torch.int64
    assert set(data.train) == {"input_ids", "labels"}
    assert (data.task, data.label_names, data.user, data.writing, data.metrics) == ("generation", (), None, None, ())
    assert data.notes == ()
    assert data.classes is not None
    assert data.classes.tolist() == [0, 0]
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    instruction_data(tokenizer, train, test, *arguments)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == kept
    assert len(kept) == 4


def test_what_was_cut_is_told(tokenizer: Any, tmp_path: Path) -> None:
    """Four words and their end fit into five tokens; into four they would without an end, which is a cut."""
    train = pairs(*[(f"{LONG} {LONG}", "ice ice ice ice")] * 3, ("moon", "saves"))
    test = pairs(("moon", LONG), ("ice", "ice"))
    for room, end, train_answers in ((5, "[end]", 0), (4, "[end]", 3), (4, None, 0)):
        tokenizer.eos_token = end
        data = instruction_data(tokenizer, train, test, ANSWER, 16, room, tmp_path / "cache", None, ())
        answers = f"{train_answers} of 4 training answers are longer than data.max_new_tokens and were cut"
        assert data.notes == (
            "3 of 4 training questions lost their end; raise data.max_length",
            *([answers] if train_answers else []),
            "1 of 2 reference answers are longer than data.max_new_tokens and were cut",
        )
    assert next(Cut(1319, 0, 29).notes("test", "reference")).startswith("29 of 1,319 reference answers are longer")


def test_alpacas_prompts() -> None:
    assert f"{as_instruction('Add {1}.')}{RESPONSE}" == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {1}.\n\n### Response:\n"
    )
    assert f"{as_instruction('Add.', '1 2')}{RESPONSE}" == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
        " response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )


def test_metamath_brings_its_types_as_classes(tmp_path: Path) -> None:
    rows = [{"type": t, "query": f"q{n}", "response": f"r{n}"} for n, t in enumerate(("MATH_SV", "GSM_SV", "MATH_SV"))]
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    found = read_metamath(str(tmp_path))
    assert (found.questions, found.answers) == (["q0", "q1", "q2"], ["r0", "r1", "r2"])
    assert found.classes.tolist() == [1, 0, 1]
    assert found.first(2).names == ("GSM_SV", "MATH_SV")
    assert found.first(2).answers == ["r0", "r1"]
    assert found.first(None).ask(str.upper).questions == ["Q0", "Q1", "Q2"]
    with pytest.raises(DataError, match=r"train.jsonl.gz has no column 'question', it has 'type', 'query', 'response'"):
        read_pairs(str(tmp_path), "train", ("question", "answer"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 1, 0.0), "data.max_length is 0, expected a whole number of at least 1"),
        ((23, 8, 1, 0.0), "data.max_length is 23, expected at least 24, which leaves 16 tokens for a question"),
        ((64, 0, 1, 0.0), "data.max_new_tokens is 0, expected a whole number of at least 1"),
        ((64, 8, 4, 0.0), "data.samples is 4 at data.temperature 0"),
        ((64, 8, 1, -1.0), "data.temperature is -1.0, expected 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: tuple[int, int, int, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_written(*arguments)
    require_written(24, 8, 1, 0.0)


def test_a_number_of_test_examples_is_none_or_some() -> None:
    require_test_examples(None)
    require_test_examples(1)
    with pytest.raises(DataError, match=r"data.test_examples is 0, expected a whole number of at least 1"):
        require_test_examples(0)
