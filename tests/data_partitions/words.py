"""A tokenizer in milliseconds: one token a word, saved as a folder like any other."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("the", "goalie", "saves", "orbit", "launch", "engine", "rides", "fast", "moon", "ice")
SPECIAL = ("[pad]", "[unk]", "[start]", "[end]")


def save_words(
    folder: Path,
    pad: str | None = "[pad]",
    end: str | None = "[end]",
    words: tuple[str, ...] = (),
    between: str = r"\s",
) -> Path:
    """Saves a tokenizer of the special tokens and `WORDS`, in this order, and of more words.

    Args:
        folder: where to.
        pad: the padding token that it names, or None.
        end: the end-of-text token that it names, or None.
        words: what it knows beside `WORDS`.
        between: what stands between words, as a pattern.
    """
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(between), "removed")  # type: ignore[assignment]
    start = vocabulary["[start]"]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[start] $A", special_tokens=[("[start]", start)]
    )
    named = {"unk_token": "[unk]", "pad_token": pad, "eos_token": end}
    named = {role: token for role, token in named.items() if token}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder
