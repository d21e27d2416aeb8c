"""The tasks of language models: the next token, an answer in words out of a few, and answers that are judged."""

import re
from collections.abc import Mapping, Sequence
from math import comb, exp, inf
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from fedsim.classification import accuracy_by_class, at_least_float32
from fedsim.data import Batch, Writing
from fedsim.errors import ConfigurationError

IGNORED = -100
"""The token label of a place where nothing is to be predicted, as in transformers and torch."""

LOSS_ROWS = 8
"""Rows whose long answers are scored in one forward, as their logits are large; more are written at once."""
QUESTION_PLACES = 32
"""What the keys and values of a question that is kept are reckoned to weigh, in rows of logits."""
WRITING_PLACES = 64
"""What the keys and values of an answer that is being written are reckoned to weigh, in rows of logits."""


class LanguageModelling:
    """Every token of a text from the ones before it, the first excepted.

    Source: perplexity as in Caldas et al. 2018 (LEAF) and FLASC, Table 2: the exponential of the mean cross-entropy
    over all predicted tokens of the split. A client's loss is the mean over its examples of their means over tokens.
    """

    higher_is_better: Mapping[str, bool] = {"perplexity": False, "loss": False}

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of each row's tokens, (B,); 0 for a text of one token."""
        sums, counts = self._sums(backbone, batch)
        return sums / counts.clamp(min=1)

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the sum of the cross-entropy of each row's tokens, and how many were predicted, (B,) each."""
        sums, counts = self._sums(backbone, batch)
        return {"sums": sums, "counts": counts}

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the perplexity, at least 1, and the mean loss of a token; NaN for rows that predict none."""
        # In float64 and in order: the sum of a long split would lose digits in float32.
        loss = float(outputs["sums"].double().sum() / outputs["counts"].sum())  # NaN where nothing was predicted
        return {"perplexity": exp(loss) if loss < 700 else loss * inf, "loss": loss}

    def by_class(self, outputs: Mapping[str, Tensor]) -> None:
        """Returns none: tokens are no classes."""

    def places(self, columns: Mapping[str, Tensor]) -> int:
        """Returns the length of the longest text."""
        return columns["input_ids"].shape[1]

    def _sums(self, backbone: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens, present = batch["input_ids"], batch["attention_mask"]
        logits = at_least_float32(backbone(input_ids=tokens, attention_mask=present).logits[:, :-1])
        targets = tokens[:, 1:].masked_fill(present[:, 1:] == 0, IGNORED)
        losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        return losses.sum(1), present[:, 1:].sum(1)


class TextToText:
    """An answer in words, by cross-entropy over the vocabulary of a language model; nothing else is predicted.

    A batch has the answer's tokens as labels (B, K), -100 where there is none, and the answer itself, masked behind its
    end, as the last K columns of input_ids (B, T).

    With choices, the model answers the choice whose tokens, the end of text included, are the most probable behind the
    question: always one of them, not divided by its length. Without, it answers what it writes freely, the likeliest
    token each time, and that has to be the right answer token by token.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".

    Args:
        choices: the answers that are possible, int64 (L, K), -100 behind the last token of each; or None.
    """

    higher_is_better: Mapping[str, bool] = {"accuracy": True, "loss": False}

    def __init__(self, choices: Tensor | None = None) -> None:
        self._choices = choices

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of each row's answer, (B,)."""
        return answer_losses(answer_logits(backbone, batch), batch["labels"])

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses, (B,), and what was answered.

        With choices these are the scores of all, (B, L), and which is right, (B,); without, the likeliest token at each
        place of the right answer and that answer, (B, K) each.
        """
        labels = batch["labels"]
        if self._choices is None:
            logits = answer_logits(backbone, batch)
            return {"losses": answer_losses(logits, labels), "tokens": logits.argmax(1), "labels": labels}
        choices = self._choices.to(labels.device)
        scores = choice_scores(backbone, batch, choices)
        right = (labels[:, None] == choices).all(-1).long().argmax(1)
        lengths = (labels != IGNORED).sum(1).clamp(min=1)
        losses = -scores.gather(1, right[:, None])[:, 0] / lengths
        return {"losses": losses, "scores": scores, "right": right}

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the accuracy, in [0, 1], and the mean loss."""
        from torchmetrics.functional.classification import multiclass_accuracy, multiclass_exact_match

        if self._choices is None:
            # Free writing gives the answer where every token and the end are right.
            tokens, labels = outputs["tokens"], outputs["labels"]
            vocabulary = max(int(torch.maximum(tokens.max(), labels.max())) + 1, 2)
            accuracy = multiclass_exact_match(tokens, labels, vocabulary, ignore_index=IGNORED)
        else:
            scores = outputs["scores"]
            accuracy = multiclass_accuracy(scores, outputs["right"], scores.shape[-1], average="micro")
        return {"accuracy": float(accuracy), "loss": float(outputs["losses"].mean())}

    def by_class(self, outputs: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the accuracy among the rows of each choice, (L,); None without choices."""
        return None if self._choices is None else accuracy_by_class(outputs["scores"], outputs["right"])

    def places(self, columns: Mapping[str, Tensor]) -> int:
        """Returns the length of the longest answer; with choices not less than what a kept question weighs."""
        length = columns["labels"].shape[1] + 1
        return length if self._choices is None else max(length, QUESTION_PLACES)


class Generation:
    """Answers in words of any length, learnt as in `TextToText`, then written and judged.

    Source: pass@k by the unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    Equation 1: of n samples c are right, 1 - C(n - c, k) / C(n, k), averaged over questions. The exact match of answers
    is the same with k = 1.

    Args:
        writing: how answers are written and judged; None leaves the loss alone as a metric.
        metrics: "exact_match" or "pass_at_K", the main one first.

    Raises:
        ConfigurationError: for another metric, or a K above the number of samples.
    """

    def __init__(self, writing: Writing | None, metrics: Sequence[str] = ("exact_match",)) -> None:
        self._writing = writing
        self._drawn = {} if writing is None else {name: _samples_needed(name, writing.samples) for name in metrics}
        self.higher_is_better: Mapping[str, bool] = {**dict.fromkeys(self._drawn, True), "loss": False}

    def example_losses(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of each row's answer, (B,)."""
        return answer_losses(answer_logits(backbone, batch), batch["labels"])

    def outputs(self, backbone: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of the reference answers, (B,), and how many of each row's samples are right, (B,)."""
        parts = zip(*(column.split(LOSS_ROWS) for column in batch.values()), strict=True)
        losses = torch.cat([self.example_losses(backbone, dict(zip(batch, part, strict=True))) for part in parts])
        if self._writing is None:
            return {"losses": losses}
        tokens = write(backbone, batch, self._writing)
        right = self._writing.judge(batch["row"].cpu(), tokens.cpu())
        return {"losses": losses, "right": right.sum(1).to(losses.device)}

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the metrics that were asked for, in [0, 1], and the mean loss."""
        found = {name: self._pass_at(outputs["right"].tolist(), k) for name, k in self._drawn.items()}
        return {**found, "loss": float(outputs["losses"].mean())}

    def by_class(self, outputs: Mapping[str, Tensor]) -> None:
        """Returns none: answers are no classes."""

    def places(self, columns: Mapping[str, Tensor]) -> int:
        """Returns what a row's samples weigh, which are written together; losses are taken of a few rows at a time."""
        return 1 if self._writing is None else WRITING_PLACES * self._writing.samples

    def _pass_at(self, right: Sequence[int], k: int) -> float:
        assert self._writing is not None
        drawn = self._writing.samples
        return sum(1 - comb(drawn - count, k) / comb(drawn, k) for count in right) / max(1, len(right))


def answer_logits(backbone: nn.Module, batch: Batch) -> Tensor:
    """Returns the logits that predict the answer's tokens, (B, vocabulary, K), and of no other, as they are large."""
    logits: Tensor = backbone(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=_positions(batch["attention_mask"]),
        logits_to_keep=batch["labels"].shape[1] + 1,
    ).logits[:, :-1]
    return at_least_float32(logits).transpose(1, 2)


def answer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of each row's answer, (B,), of logits (B, vocabulary, K) and labels (B, K)."""
    losses = functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def choice_scores(backbone: nn.Module, batch: Batch, choices: Tensor) -> Tensor:
    """Scores every choice behind every question; the question is read once, and kept for all choices.

    Args:
        backbone: a transformers language model.
        batch: input_ids and attention_mask (B, T), of which the last K columns, the right answer, are left out.
        choices: int64 (L, K), -100 behind the last token of each.

    Returns:
        The log-probability of each choice, (B, L).
    """
    width = choices.shape[1]
    question, present = batch["input_ids"][:, :-width], batch["attention_mask"][:, :-width]
    rows = len(question)
    read = backbone(
        input_ids=question,
        attention_mask=present,
        position_ids=_positions(present),
        logits_to_keep=1,
        use_cache=True,
    )
    first = at_least_float32(read.logits).log_softmax(-1)
    kept = getattr(read, "past_key_values", None)
    behind = torch.arange(width - 1, device=choices.device)
    places = {
        "attention_mask": torch.cat([present, present.new_ones(rows, width - 1)], dim=1),
        "position_ids": present.sum(1, keepdim=True) + behind,
    }
    scores = []
    for choice in choices:
        spread = first
        if width > 1:  # a choice's last token predicts nothing
            told = choice[:-1].clamp(min=0).expand(rows, -1)
            logits = backbone(input_ids=told, past_key_values=kept, use_cache=True, **places).logits
            spread = torch.cat([first, at_least_float32(logits).log_softmax(-1)], dim=1)
            _cut(kept, width - 1, backbone)
        found = spread.gather(-1, choice.clamp(min=0).expand(rows, -1)[..., None])[..., 0]
        scores.append(found.masked_fill(choice == IGNORED, 0).sum(-1))
    return torch.stack(scores, dim=1)


def _cut(kept: Any, tokens: int, backbone: nn.Module) -> None:
    """Takes the last tokens out of the keys and values that a model keeps, which not every kind of model can."""
    try:
        kept.crop(-tokens)
    except (AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigurationError(
            f"{type(backbone).__name__} cannot go back to a question that it has read ({error}), which scoring by "
            "likelihood needs; give data.scoring generation, or another --backbone.path"
        ) from error


def write(backbone: nn.Module, batch: Batch, writing: Writing) -> Tensor:
    """Lets a language model answer the questions of a batch.

    Samples are drawn from a generator that is seeded by the batch's first row, so neither workers nor what happened
    before change them, and every evaluation of every run draws alike; the global random state stays as it is.

    Args:
        backbone: a transformers language model.
        batch: as in `TextToText`, with row (B,) int64; answers are not read.
        writing: lengths, samples and temperature.

    Returns:
        The answers' tokens, int64 (B, S, max_new_tokens), padded behind the end.
    """
    from transformers import GenerationConfig

    width = batch["labels"].shape[1]
    question, present = batch["input_ids"][:, :-width], batch["attention_mask"][:, :-width]
    padding = 0 if writing.end_token_id is None else writing.end_token_id
    drawn = {"do_sample": True, "temperature": writing.temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=writing.max_new_tokens,
        num_return_sequences=writing.samples,
        eos_token_id=writing.end_token_id,
        pad_token_id=padding,
        use_cache=True,
        **(drawn if writing.temperature else {"do_sample": False}),
    )
    devices = [question.device] if question.device.type == "cuda" else []
    model: Any = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    # transformers fills what is not said with the checkpoint's own habits, such as a penalty for repetition.
    habits, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(batch["row"][0]))
            found: Tensor = model.generate(input_ids=question, attention_mask=present, generation_config=config)
    finally:
        model.generation_config = habits
    answers = found[:, question.shape[1] :]
    answers = functional.pad(answers, (0, writing.max_new_tokens - answers.shape[1]), value=padding)
    return answers.view(len(question), writing.samples, -1)


def _positions(present: Tensor) -> Tensor:
    """Counts positions from where a row's tokens begin."""
    return (present.cumsum(1) - 1).clamp(min=0)


def _samples_needed(metric: str, samples: int) -> int:
    """The k of a metric, which must not be above the number of samples."""
    match = re.fullmatch(r"exact_match|pass_at_([1-9]\d*)", metric)
    if match is None:
        raise ConfigurationError(f"there is no metric {metric!r} of answers; expected exact_match or pass_at_1, ...")
    needed = int(match[1] or 1)
    if needed > samples:
        raise ConfigurationError(f"{metric} needs {needed} samples a question, there are {samples}; raise data.samples")
    return needed
