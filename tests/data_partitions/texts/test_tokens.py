"""Tokens: made once, cut where they should be, laid out for either task; tokenizers from folders and the hub cache."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, ByT5Tokenizer, GPT2Config

from data_partitions.errors import DataError
from data_partitions.texts import tokens as text
from data_partitions.texts.tokens import (
    IGNORED,
    NO_TOKEN,
    TextData,
    cached_tokens,
    load_tokenizer,
    pad_rows,
    with_answers,
)
from tests.data_partitions.words import save_words

TEXTS = ["the goalie saves", "moon", "the engine rides fast fast fast", "unheard of"]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return save_words(tmp_path / "words")


def test_tokens_are_cut_and_padded(words: Path, tmp_path: Path) -> None:
    """Special tokens are 0 to 3, the words 4 to 13; the start token counts."""
    tokenizer = load_tokenizer(str(words))
    tokens = cached_tokens(TEXTS, tokenizer, 5, tmp_path / "cache")
    expected = [[2, 4, 5, 6, -1], [2, 12, -1, -1, -1], [2, 4, 9, 10, 11], [2, 1, 1, -1, -1]]
    np.testing.assert_array_equal(tokens, expected)
    assert tokens.dtype == np.int32
    assert cached_tokens(TEXTS[:2], tokenizer, 500, tmp_path / "cache").shape == (2, 4)


def test_a_second_call_tokenises_nothing(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    made = cached_tokens(TEXTS, load_tokenizer(str(words)), 5, cache)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenised again")

    fresh = load_tokenizer(str(words))
    monkeypatch.setattr(type(fresh), "__call__", never)
    np.testing.assert_array_equal(cached_tokens(TEXTS, fresh, 5, cache), made)
    with pytest.raises(AssertionError, match="tokenised again"):
        cached_tokens(TEXTS, fresh, 4, cache)  # another length
    with pytest.raises(AssertionError, match="tokenised again"):
        cached_tokens([*TEXTS[:3], "unheard o"], fresh, 5, cache)  # another text
    other = load_tokenizer(str(save_words(tmp_path / "other", words=("unheard",))))
    with pytest.raises(AssertionError, match="tokenised again"):
        cached_tokens(TEXTS, other, 5, cache)
    fresh.truncation_side = "left"
    with pytest.raises(AssertionError, match="tokenised again"):
        cached_tokens(TEXTS, fresh, 5, cache)


def test_what_a_tokenizer_did_before_does_not_matter(words: Path, tmp_path: Path) -> None:
    """A call with truncation leaves it switched on in a fast tokenizer, as padding does."""
    tokenizer = load_tokenizer(str(words))
    cached_tokens(TEXTS, tokenizer, 5, tmp_path / "cache")
    tokenizer(TEXTS, truncation=True, max_length=2, padding=True)
    cached_tokens(TEXTS, tokenizer, 5, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_slices_make_no_difference(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens under the same name, though each slice has its own longest text."""
    tokenizer = load_tokenizer(str(words))
    whole = cached_tokens(TEXTS, tokenizer, 5, tmp_path / "whole")
    monkeypatch.setattr(text, "SLICE", 2)
    asked = []
    call = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *a, **k: asked.append(len(a[1])) or call(*a, **k))
    for texts, slices in ((TEXTS, [2, 2]), (TEXTS[::-1][:3], [2, 1])):
        asked.clear()
        cut = cached_tokens(texts, tokenizer, 5, tmp_path / "cut")
        assert asked == slices
        np.testing.assert_array_equal(cut, whole if texts is TEXTS else whole[::-1][:3])
        assert cut.dtype == np.int32
    assert {file.name for file in (tmp_path / "whole").iterdir()} <= {
        file.name for file in (tmp_path / "cut").iterdir()
    }


def test_what_the_rules_do_not_say_makes_other_files(words: Path, tmp_path: Path) -> None:
    """Whether a special token's name in a text is that token, and what an empty text becomes."""
    tokenizer = load_tokenizer(str(words))
    assert cached_tokens(["moon[end]"], tokenizer, 5, tmp_path / "cache").tolist() == [[2, 12, 3]]
    tokenizer.split_special_tokens = True
    assert cached_tokens(["moon[end]"], tokenizer, 5, tmp_path / "cache").tolist() == [[2, 1]]
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    assert cached_tokens([""], tokenizer, 5, tmp_path / "cache").tolist() == [[3]]
    tokenizer.eos_token = "moon"
    assert cached_tokens([""], tokenizer, 5, tmp_path / "cache").tolist() == [[12]]


def test_an_empty_text_is_its_end(words: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(words))
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])  # none that puts a token before every text
    np.testing.assert_array_equal(cached_tokens(["", "moon"], tokenizer, 5, tmp_path), [[3], [12]])


rows = st.lists(st.integers(0, 9), max_size=5)


@given(st.lists(st.tuples(rows, rows.filter(len)), min_size=1, max_size=4))
def test_answers_start_in_one_column(pairs: list[tuple[list[int], list[int]]]) -> None:
    """Read from the left, gaps passed over, each row is its question and then its answer."""
    questions, answers = zip(*pairs, strict=True)
    longest = max(map(len, answers))
    inputs, labels = with_answers(pad_rows(questions, 5), pad_rows(answers, longest))
    assert inputs.shape == (len(pairs), 5 + longest)
    for row, target, question, answer in zip(inputs, labels, questions, answers, strict=True):
        assert [token for token in row if token != NO_TOKEN] == question + answer
        assert row[5 : 5 + len(answer)].tolist() == answer
        assert target.tolist() == answer + [IGNORED] * (longest - len(answer))


def test_transform_fills_and_masks() -> None:
    columns = {"input_ids": torch.tensor([[5, 6, -1], [-1, 7, 3]], dtype=torch.int32), "labels": torch.tensor([0, 1])}
    data = TextData(columns, columns, ("a", "b"), "text_classification", pad_token_id=3)
    batch = data.transform(data.train, None)
    assert batch["input_ids"].tolist() == [[5, 6, 3], [3, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [0, 1, 1]]
    assert {batch[name].dtype for name in ("input_ids", "attention_mask")} == {torch.int64}
    assert torch.equal(batch["labels"], columns["labels"])


def test_a_text_without_tokens_is_named() -> None:
    columns = {"input_ids": torch.tensor([[5, 6], [-1, -1]]), "labels": torch.tensor([0, 1])}
    with pytest.raises(DataError, match="train text at row 1 has no tokens"):
        TextData(columns, columns, ("a", "b"), "text_classification", pad_token_id=0)


def test_the_end_of_text_pads_where_nothing_else_does(tmp_path: Path) -> None:
    """As with GPT-2's tokenizer."""
    assert load_tokenizer(str(save_words(tmp_path / "both"))).pad_token_id == 0
    assert load_tokenizer(str(save_words(tmp_path / "end", pad=None))).pad_token_id == 3
    neither = save_words(tmp_path / "neither", pad=None, end=None)
    with pytest.raises(DataError, match=r"neither' has no padding and no end-of-text token, expected one of them"):
        load_tokenizer(str(neither))


def test_what_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nowhere"):
        with pytest.raises(DataError, match=f"{path}' cannot be loaded .* give one with --data.tokenizer"):
            load_tokenizer(str(tmp_path / path))
    monkeypatch.setattr(text, "probe_hub", lambda ask: "no answer within 3 s")
    with pytest.raises(DataError, match=r"'somebody/words' cannot be loaded \(no answer within 3 s\)"):
        load_tokenizer("somebody/words")


def test_code_of_a_checkpoint_is_not_run(words: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = json.loads((words / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "mine.Mine"]}, "tokenizer_class": "Mine"}
    (words / "tokenizer_config.json").write_text(json.dumps(config))
    (words / "mine.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_tokenizer(str(words))
    assert "[y/N]" not in capfd.readouterr().out


def test_a_tokenizer_without_a_fast_form(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"ByT5Tokenizer without a fast form, expected one with tokenizer.json"):
        load_tokenizer(str(tmp_path))


def test_a_cached_model_without_its_tokenizer_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever used the model elsewhere first has its weights in the cache, and no tokenizer."""
    asked: list[str] = []

    def load(source: str, **options: Any) -> Any:
        asked.append("cache" if options["local_files_only"] else "hub")
        return real(str(tmp_path / "words" if asked[-1] == "hub" else tmp_path / "model"))

    save_words(tmp_path / "words")
    GPT2Config().save_pretrained(tmp_path / "model")
    real = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    monkeypatch.setattr(text, "probe_hub", lambda ask: None)
    assert load_tokenizer("somebody/words").pad_token_id == 0
    assert asked == ["cache", "hub"]


def test_a_hub_id_is_taken_from_the_cache(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "1" * 40
    stored = tmp_path / "hub" / "models--somebody--words"
    shutil.copytree(words, stored / "snapshots" / commit)
    (stored / "snapshots" / commit / "config.json").write_text(json.dumps({"model_type": "gpt2"}))  # as a model has
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_tokenizer("somebody/words").pad_token_id == 0
