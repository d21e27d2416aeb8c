import itertools
import math
from math import comb
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from data_partitions.texts.writing import Writing
from fedsim.errors import ConfigurationError
from fedsim.language import Generation, LanguageModelling, TextToText, choice_scores, write
from tests import tiny


class Parrot(nn.Module):
    """A language model that answers with the logits that it is given, whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, logits_to_keep: int, **_: Tensor) -> SimpleNamespace:
        assert logits_to_keep == self.logits.shape[1]
        return SimpleNamespace(logits=self.logits)


def test_answers_by_hand() -> None:
    """Only a row whose every token is right counts; what stands behind an answer's end counts nothing."""
    labels = torch.tensor([[1, 2], [1, 2], [0, -100]])
    batch = {"labels": labels, "input_ids": torch.zeros(3, 4), "attention_mask": torch.ones(3, 4).long()}
    logits = torch.zeros(3, 3, 3)
    logits[0, 0, 1] = logits[0, 1, 2] = math.log(2)  # right twice: 2 of 1 + 1 + 2
    logits[1, 0, 1] = logits[1, 1, 0] = math.log(2)  # right, then wrong: 1 of 4
    logits[2, 0, 0] = math.log(6)  # right: 6 of 8; the token behind does not matter
    model, task = Parrot(logits), TextToText()
    expected = [math.log(2), (math.log(2) + math.log(4)) / 2, math.log(8 / 6)]
    assert task.example_losses(model, batch).tolist() == pytest.approx(expected, rel=1e-6)
    metrics = task.metrics(task.outputs(model, batch))
    assert metrics == {"accuracy": pytest.approx(2 / 3), "loss": pytest.approx(sum(expected) / 3, rel=1e-6)}
    assert dict(task.higher_is_better) == {"accuracy": True, "loss": False}


@pytest.mark.parametrize("backbone", ["gpt2_lm", "llama"])
def test_an_answer_counts_where_greedy_decoding_writes_it(backbone: str) -> None:
    """Questions in one batch, padded, against each decoded alone; half of the answers are what the model writes."""
    built = tiny.build(backbone=backbone)
    model, columns = built.model, {name: column[:8].clone() for name, column in built.test.columns.items()}
    width = columns["labels"].shape[1]
    written = []
    for row in range(8):
        question = columns["input_ids"][row, :-width]
        question = question[question >= 0][None].long()
        whole = model.generate(
            input_ids=question,
            attention_mask=torch.ones_like(question),
            max_new_tokens=width,
            do_sample=False,
            eos_token_id=None,
        )
        written.append(whole[0, question.shape[1] :])
        if row % 2:
            columns["labels"][row] = columns["input_ids"][row, -width:] = written[row]
    task = TextToText()
    batch = tiny.answers().transform(columns, None)
    with torch.no_grad():
        outputs = task.outputs(model, batch)
    right = [
        all(token in (-100, reply) for token, reply in zip(label.tolist(), replies.tolist(), strict=True))
        for label, replies in zip(columns["labels"], written, strict=True)
    ]
    assert sum(right) >= 4
    assert task.metrics(outputs)["accuracy"] == pytest.approx(sum(right) / 8)


@pytest.mark.parametrize("backbone", ["gpt2_lm", "llama"])
def test_choices_behind_one_question_score_as_each_does_alone(backbone: str) -> None:
    """The oracle reads question and choice alone, without padding, once per row and choice."""
    built = tiny.build(backbone=backbone)
    built.parameters.load(built.start())
    rows = {name: column[:6] for name, column in built.test.columns.items()}
    batch = tiny.answers().transform(rows, None)
    width = batch["labels"].shape[1]
    choices = torch.tensor([[3, 4, 5], [3, 4, -100], [9, -100, -100], [3, 7, 5]])
    assert choices.shape[1] == width
    with torch.no_grad():
        found = choice_scores(built.model, batch, choices)
        for row, choice in itertools.product(range(6), range(4)):
            question = rows["input_ids"][row, :-width]
            question = question[question >= 0].long()
            tokens = choices[choice][choices[choice] >= 0]
            logits = built.model(input_ids=torch.cat([question, tokens])[None]).logits[0]
            spread = logits[len(question) - 1 : -1].log_softmax(-1)
            expected = spread[torch.arange(len(tokens)), tokens].sum()
            torch.testing.assert_close(found[row, choice], expected, rtol=1e-5, atol=1e-5)


def test_choosing_by_hand() -> None:
    """A uniform model finds the shortest choice the likeliest; the loss is that of the right one."""

    class Uniform(nn.Module):
        def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
            kept = SimpleNamespace(crop=lambda tokens: None)
            return SimpleNamespace(logits=torch.zeros(len(input_ids), 1, 4), past_key_values=kept)

    task = TextToText(torch.tensor([[1, 2], [3, -100]]))
    batch = {
        "labels": torch.tensor([[1, 2], [3, -100]]),
        "input_ids": torch.zeros(2, 4).long(),
        "attention_mask": torch.ones(2, 4).long(),
    }
    with torch.no_grad():
        outputs = task.outputs(Uniform(), batch)
    torch.testing.assert_close(outputs["scores"], -math.log(4) * torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    assert outputs["right"].tolist() == [0, 1]
    assert task.metrics(outputs) == {"accuracy": 0.5, "loss": pytest.approx(math.log(4))}
    assert task.by_class(outputs).tolist() == [0, 1]


class Told(nn.Module):
    """A language model with given logits, whatever it reads."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **_: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def test_perplexity_is_over_tokens_and_a_client_s_loss_over_examples() -> None:
    """Two tokens predicted at 1/4 each, one at 1/2: perplexity is 32 to the power of 1/3; padding counts nothing."""
    batch = {"input_ids": torch.tensor([[0, 1, 1], [0, 1, 9]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    logits = torch.zeros(2, 3, 4)
    logits[1, 0, 1] = math.log(3)  # 3 of 6
    task, model = LanguageModelling(), Told(logits)
    assert task.example_losses(model, batch).tolist() == pytest.approx([math.log(4), math.log(2)])
    found = task.metrics(task.outputs(model, batch))
    assert found == {"perplexity": pytest.approx(32 ** (1 / 3)), "loss": pytest.approx(math.log(32) / 3)}
    assert dict(task.higher_is_better) == {"perplexity": False, "loss": False}


def test_a_text_of_one_token_predicts_nothing() -> None:
    batch = {"input_ids": torch.tensor([[1, 9]]), "attention_mask": torch.tensor([[1, 0]])}
    task, model = LanguageModelling(), Told(torch.randn(1, 2, 4))
    assert task.example_losses(model, batch).tolist() == [0]
    found = task.metrics(task.outputs(model, batch))
    assert math.isnan(found["perplexity"])
    assert math.isnan(found["loss"])


@pytest.mark.parametrize("backbone", ["gpt2_lm", "llama"])
def test_the_loss_of_a_language_model_is_transformers_own(backbone: str) -> None:
    """Without padding, and averaged over one row, transformers computes the same."""
    built = tiny.build(backbone=backbone)
    tokens = torch.randint(3, 20, (1, 9))
    with torch.no_grad():
        expected = built.model(input_ids=tokens, labels=tokens).loss
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        torch.testing.assert_close(LanguageModelling().example_losses(built.model, batch)[0], expected)


class Words:
    """A tokenizer whose words are numbers."""

    eos_token_id = 2

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, tokens: list[int], **_: bool) -> str:
        return " ".join(map(str, tokens))


def questions(built: tiny.Tiny, rows: int = 6) -> dict[str, Tensor]:
    columns = {name: column[:rows] for name, column in built.test.columns.items()}
    return {**tiny.answers().transform(columns, None), "row": torch.arange(rows)}


@pytest.mark.parametrize("backbone", ["gpt2_lm", "llama"])
def test_writing_in_a_batch_is_writing_alone(backbone: str) -> None:
    built = tiny.build(backbone=backbone)
    built.parameters.load(built.start())
    batch, writing = questions(built), Writing(Words(), lambda row, text: True, max_new_tokens=4)
    found = write(built.model, batch, writing)
    assert found.shape == (6, 1, 4)
    for row in range(6):
        question = batch["input_ids"][row, :-3][batch["attention_mask"][row, :-3] == 1][None]
        alone = []
        for _ in range(4):  # greedy, the plain way
            token = built.model(input_ids=question).logits[0, -1].argmax()
            alone.append(int(token))
            question = torch.cat([question, token[None, None]], dim=1)
            if token == Words.eos_token_id:
                break
        assert found[row, 0, : len(alone)].tolist() == alone


def test_a_checkpoint_s_habits_of_writing_are_left_out() -> None:
    """As many chat models ship them; the likeliest token is the likeliest token."""
    built = tiny.build(backbone="gpt2_lm")
    built.parameters.load(built.start())
    batch, writing = questions(built), Writing(Words(), lambda row, text: True, max_new_tokens=4)
    plain = write(built.model, batch, writing)
    habits = GenerationConfig(repetition_penalty=5.0, bad_words_ids=[[token] for token in plain.unique().tolist()])
    base = built.model.get_base_model()
    base.generation_config = habits
    assert torch.equal(write(built.model, batch, writing), plain)
    assert base.generation_config is habits
    assert not torch.equal(base.generate(inputs=torch.tensor([[3]]), max_new_tokens=4, pad_token_id=0), plain)


def test_samples_are_drawn_again_the_same_and_leave_the_random_state() -> None:
    built = tiny.build(backbone="gpt2_lm")
    batch, state = questions(built), torch.get_rng_state()
    writing = Writing(Words(), lambda row, text: True, max_new_tokens=4, samples=3, temperature=1.0)
    first, second = write(built.model, batch, writing), write(built.model, batch, writing)
    assert first.shape == (6, 3, 4)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert not torch.equal(first, write(built.model, {**batch, "row": batch["row"] + 6}, writing))


def test_written_answers_are_judged_by_row_and_cut_at_their_end() -> None:
    asked: list[tuple[int, str]] = []

    def is_right(row: int, text: str) -> bool:
        asked.append((row, text))
        return row == 1

    judged = Writing(Words(), is_right).judge(torch.tensor([1, 4]), torch.tensor([[[5, 6, 2, 9]], [[7, 8, 8, 8]]]))
    assert judged.tolist() == [[True], [False]]
    assert asked == [(1, "5 6"), (4, "7 8 8 8")]


def test_generation_counts_what_the_judge_finds_right() -> None:
    built = tiny.build(backbone="gpt2_lm")
    writing = Writing(Words(), lambda row, text: row % 2 == 0, max_new_tokens=2)
    task = Generation(writing)
    with torch.no_grad():
        found = task.metrics(task.outputs(built.model, questions(built, 5)))
    assert found["exact_match"] == pytest.approx(3 / 5)
    assert list(found) == list(task.higher_is_better) == ["exact_match", "loss"]
    assert list(Generation(None).metrics({"losses": torch.ones(2)})) == ["loss"]


@pytest.mark.parametrize(("drawn", "k"), [(1, 1), (5, 1), (5, 3), (5, 5)])
def test_pass_at_k_is_the_mean_over_all_draws_of_k(drawn: int, k: int) -> None:
    """Against counting: of all subsets of k samples, those with a right one."""
    writing: Any = Writing(Words(), lambda row, text: True, samples=drawn, temperature=1.0)
    task = Generation(writing, (f"pass_at_{k}",))
    for right in range(drawn + 1):
        subsets = itertools.combinations([True] * right + [False] * (drawn - right), k)
        expected = sum(any(subset) for subset in subsets) / comb(drawn, k)
        outputs = {"losses": torch.ones(1), "right": torch.tensor([right])}
        assert task.metrics(outputs)[f"pass_at_{k}"] == pytest.approx(expected)


@pytest.mark.parametrize(("metric", "expected"), [("pass_at_4", "3"), ("pass_at_0", "expected"), ("bleu", "expected")])
def test_metrics_of_answers_that_cannot_be_had_are_refused(metric: str, expected: str) -> None:
    writing = Writing(Words(), lambda row, text: True, samples=3, temperature=1.0)
    with pytest.raises(ConfigurationError, match=expected):
        Generation(writing, (metric,))
