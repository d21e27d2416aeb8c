"""How a language model's answers are written and judged: lengths, samples, and what counts as right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_partitions.checks import require_whole
from data_partitions.errors import DataError
from data_partitions.texts.continuing import text_behind

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Writing:
    """Answers to the test questions: how they are written, and whether they are right.

    Args:
        tokenizer: turns tokens into texts.
        is_right: of a row of the test split and an answer's text; it may take its time.
        max_new_tokens: of an answer, at least 1.
        samples: answers to a question, at least 1.
        temperature: 0 writes the likeliest token each time, more draws from the softmax of logits divided by it.

    Raises:
        DataError: for a value out of range, or several samples that would all be the same.
    """

    tokenizer: Any
    is_right: Callable[[int, str], bool]
    max_new_tokens: int = 256
    samples: int = 1
    temperature: float = 0.0

    def __post_init__(self) -> None:
        require_whole("data.max_new_tokens", self.max_new_tokens, 1, 256)
        require_whole("data.samples", self.samples, 1, 1)
        if not self.temperature >= 0:
            raise DataError(f"data.temperature is {self.temperature!r}, expected 0 or more: give e.g. 0.8")
        if self.samples > 1 and self.temperature == 0:
            raise DataError(
                f"data.samples is {self.samples} at data.temperature 0, which writes the same answer every time: give a"
                f" temperature such as 0.8, or one sample"
            )

    @property
    def end_token_id(self) -> int | None:
        """The token at which an answer ends; None where only its length ends it."""
        end: int | None = self.tokenizer.eos_token_id
        return end

    def judge(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Judges answers.

        Args:
            rows: of the test split, int64 (B,).
            tokens: the answers, int64 (B, S, K), anything behind an end token.

        Returns:
            bool (B, S), on the CPU: whether an answer is right.
        """
        import torch

        texts = [[self._text(answer) for answer in answers] for answers in tokens.tolist()]
        pairs = zip(rows.tolist(), texts, strict=True)
        judged = [[self.is_right(row, text) for text in answers] for row, answers in pairs]
        return torch.tensor(judged, dtype=torch.bool).reshape(tokens.shape[:2])

    def _text(self, answer: list[int]) -> str:
        end = answer.index(self.end_token_id) if self.end_token_id in answer else len(answer)
        return text_behind(answer[:end], self.tokenizer)
