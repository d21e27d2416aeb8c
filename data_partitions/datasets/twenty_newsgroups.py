"""20 Newsgroups: 18,846 Usenet posts in twenty groups, to be told by label or by name."""

from __future__ import annotations

from typing import Literal

import numpy as np

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.reading.columns import require_label_names
from data_partitions.reading.labels import numbers_of
from data_partitions.texts.labels_as_text import require_scoring, written_labels
from data_partitions.texts.rows import (
    columns_for_a_head,
    read_rows,
    require_max_length,
    require_tokenizer,
    texts_of,
)
from data_partitions.texts.tokens import TextData

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
        scoring: what counts as right in text_to_text. likelihood: the answer is the label whose tokens, end of text
            included, are together the most probable behind the post, so always one of the labels. generation: greedy
            writing, free to write anything, has to give exactly the label's tokens.
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
        scoring: Literal["likelihood", "generation"] = "likelihood",
        max_length: int = 256,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        require_max_length(max_length, 256)
        require_scoring(scoring)
        self.path = path
        self.tokenizer = tokenizer
        self.task = task
        self.scoring = scoring
        self.max_length = max_length
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads and tokenises both splits.

        Returns:
            11,314 training and 7,532 test examples: input_ids int32 (N, T), which `transform` turns into input_ids and
            attention_mask int64 (B, T), and labels int64: (N,) for text_classification, (N, K) for text_to_text, the
            tokens that the last K columns of input_ids should have. Nobody is named as the writer.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        (texts, labels), (test_texts, test_labels) = self._read("train"), self._read("test")
        choices = None
        if self.task == "text_to_text":
            layout = (LABEL_NAMES, QUESTION, self.max_length, self.cache)
            train, answers = written_labels(tokenizer, texts, labels, *layout)
            test, _ = written_labels(tokenizer, test_texts, test_labels, *layout)
            choices = answers if self.scoring == "likelihood" else None
        else:
            train = columns_for_a_head(tokenizer, texts, None, labels, self.max_length, self.cache)
            test = columns_for_a_head(tokenizer, test_texts, None, test_labels, self.max_length, self.cache)
        return TextData(
            train=train,
            test=test,
            label_names=LABEL_NAMES,
            task=self.task,
            classes=labels,
            pad_token_id=tokenizer.pad_token_id,
            choices=choices,
        )

    def _read(self, split: str) -> tuple[list[str], np.ndarray]:
        """The texts of a split and their labels int64 (N,), in range."""
        found = read_rows(self.path, split, ("text", "label"))
        require_label_names(f"data.path {self.path!r}, {split},", found, LABEL_NAMES)
        return texts_of(found, split, "text"), numbers_of(found, split, "label", len(LABEL_NAMES))
