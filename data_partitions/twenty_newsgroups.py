"""20 Newsgroups: 18,846 Usenet posts in twenty groups, to be told by label or by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_partitions.columns import load_columns, require_label_names
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.text import TextData, cached_tokens, load_tokenizer, pad_rows, with_answers

if TYPE_CHECKING:
    from torch import Tensor

LABEL_NAMES = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)
QUESTION = "\n\nNewsgroup:"
"""Stands between a post and its group's name; the paper does not say what it put there."""


class TwentyNewsgroups(DataSet):
    """Usenet posts of twenty newsgroups, 11,314 for training and 7,532 for testing.

    As text_to_text a language model learns to write the group's name behind the post, and nothing but the adapter
    trains; as text_classification a head is trained for the twenty labels. The hub's SetFit/20_newsgroups has headers,
    signatures and quotations taken out, which scikit-learn's and other copies keep: they are not the same task.

    Source: K. Lang, "NewsWeeder", 1995, split by date; used as in FLASC (Kuo et al.), Section 4 and Appendix B.3.

    Args:
        path: a local folder with `train` and `test` files (see `load_columns`) or a hub id; columns `text` and `label`.
        tokenizer: a local folder or a hub id; the backbone's own where it is not given.
        task: what is learned.
        max_length: tokens of an example, question and name included where they are written, at least 8.
        cache: the folder that keeps tokens for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "SetFit/20_newsgroups",
        tokenizer: str | None = None,
        task: Literal["text_to_text", "text_classification"] = "text_to_text",
        max_length: int = 256,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 8:
            raise DataError(f"data.max_length is {max_length!r}, expected a whole number of at least 8: give e.g. 256")
        self.path = path
        self.tokenizer = tokenizer
        self.task = task
        self.max_length = max_length
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads and tokenises both splits.

        Returns:
            11,314 training and 7,532 test examples: input_ids int32 (N, T), which `transform` turns into input_ids and
            attention_mask int64 (B, T), and labels int64: (N,) for text_classification, (N, K) for text_to_text, the
            tokens that the last K columns of input_ids should have. Nobody is named as the writer.
        """
        if self.tokenizer is None:
            raise DataError("data.tokenizer is missing, expected a folder or a hub id: give the backbone's path")
        tokenizer = load_tokenizer(self.tokenizer)
        (texts, labels), (test_texts, test_labels) = self._read("train"), self._read("test")
        as_text = self.task == "text_to_text"
        columns = self._columns_for_writing if as_text else self._columns_for_a_head
        return TextData(
            train=columns(tokenizer, texts, labels),
            test=columns(tokenizer, test_texts, test_labels),
            label_names=() if as_text else LABEL_NAMES,
            task=self.task,
            classes=labels,
            pad_token_id=tokenizer.pad_token_id,
        )

    def _read(self, split: str) -> tuple[list[str], np.ndarray]:
        """The texts of a split and their labels int64 (N,), in range."""
        table = load_columns(self.path, split, ("text", "label"))
        require_label_names(f"data.path {self.path!r}, {split},", table, LABEL_NAMES)
        columns = table.with_format("arrow")[:]
        texts, labels = columns["text"].to_pylist(), columns["label"].to_numpy()
        if not texts:
            raise DataError(f"data.path {self.path!r} has no rows in {split}, expected at least one: check its files")
        if not isinstance(texts[0], str):
            raise DataError(f"{split} column text holds {type(texts[0]).__name__}, expected texts: give other data")
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{split} column label holds {labels.dtype}, expected integers 0 to 19: number the labels")
        outside = np.flatnonzero((labels < 0) | (labels >= len(LABEL_NAMES)))
        if len(outside):
            row = outside[0]
            raise DataError(f"{split} label {labels[row]} at row {row} is outside the expected 0 to 19: correct it")
        return texts, labels.astype(np.int64)

    def _columns_for_a_head(self, tokenizer: Any, texts: list[str], labels: np.ndarray) -> dict[str, Tensor]:
        """The post's tokens, and its label."""
        import torch

        tokens = cached_tokens(texts, tokenizer, self.max_length, self.cache)
        return {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}

    def _columns_for_writing(self, tokenizer: Any, texts: list[str], labels: np.ndarray) -> dict[str, Tensor]:
        """Post, question, name and end of text, for a language model; the post is cut so that all fits."""
        import torch

        question = np.array(tokenizer(QUESTION, add_special_tokens=False)["input_ids"], dtype=np.int32)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        names = tokenizer([f" {name}" for name in LABEL_NAMES], add_special_tokens=False)["input_ids"]
        answers = pad_rows([name + end for name in names], max(map(len, names)) + len(end))
        # Cut by the longest name, whatever the post's own: its length must not tell the answer.
        room = self.max_length - len(question) - answers.shape[1]
        if room < 1:
            least = self.max_length - room + 1
            raise DataError(f"data.max_length is {self.max_length}, expected at least {least} for question and name")
        posts = cached_tokens(texts, tokenizer, room, self.cache)
        questions = np.concatenate([posts, np.broadcast_to(question, (len(posts), len(question)))], axis=1)
        inputs, targets = with_answers(questions, answers[labels])
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(targets)}
