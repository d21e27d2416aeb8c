"""Data that a run cannot use: one line, exit status 2, before anything is written; caches whole or not there."""

import dataclasses
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from PIL import Image

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.datasets.twenty_newsgroups import LABEL_NAMES
from fedsim.backbone import quiet
from launch.__main__ import main
from tests import tiny
from tests.data_partitions.words import save_words

POSTS = [{"text": "the goalie saves", "label": 10}, {"text": "orbit", "label": 14}] * 20


def write_posts(folder: Path, rows: list[dict[str, Any]] = POSTS, behind: str = "") -> None:
    for split in ("train", "test"):
        with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in (rows if split == "train" else POSTS)))
            file.write(behind if split == "train" else "")


def image(side: int = 32, kept: int | None = None) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue()[:kept], "path": None}


def write_images(folder: Path, last: dict[str, Any] | None = None, label: int = 1, name: str = "label") -> None:
    for split in ("train", "test"):
        cells = [image() for _ in range(39)] + [last or image()]
        Dataset.from_dict({"img": cells, name: [0] * 39 + [label]}).to_parquet(folder / f"{split}.parquet")


def save_gpt2(folder: Path, tokens: int = 60, positions: int = 32, **tokenizer: Any) -> None:
    config = hf.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=tokens, n_positions=positions, bos_token_id=2, eos_token_id=3
    )
    with quiet(), torch.random.fork_rng():
        hf.GPT2LMHeadModel(config).save_pretrained(folder)
    save_words(folder, **({"words": LABEL_NAMES} | tokenizer))


def save_roberta(folder: Path, positions: int) -> None:
    config = hf.RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=60, max_position_embeddings=positions
    )
    with quiet(), torch.random.fork_rng():
        hf.RobertaForMaskedLM(config).save_pretrained(folder)
    save_words(folder, words=LABEL_NAMES)


def forget_the_tokenizer(folder: Path) -> None:
    save_gpt2(folder)
    for file in folder.glob("token*"):
        file.unlink()


def make_posts_long(folder: Path) -> None:
    write_posts(folder, [{"text": "moon " * 99, "label": 1}] * 40)


def write_problems(folder: Path) -> None:
    save_gpt2(folder)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"question": "moon", "answer": "#### 7"}) + "\n")


def make_posts_too_long_for_roberta(folder: Path) -> None:
    save_roberta(folder, 34)
    make_posts_long(folder)


def write_images_for_gpt2(folder: Path) -> None:
    save_gpt2(folder)
    write_images(folder)


IMAGES = "--data CIFAR10 --data.path here --data.image_size 8"
POSTED = "--data TwentyNewsgroups --data.path here --backbone.path here"
COLUMNS = "--data Texts --data.path here --backbone.path here"
CASES: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "a missing column of images": (
        lambda here: write_images(here, name="fine_label"),
        IMAGES,
        ("train.parquet has no column 'label'", "'fine_label'", "rename"),
    ),
    "a missing column of texts": (
        lambda here: write_posts(here, [{"body": "a", "label": 1}]),
        POSTED,
        ("train.jsonl.gz has no column 'text'", "'body'", "rename"),
    ),
    "a broken line": (
        lambda here: write_posts(here, behind='{"text": "cut sh'),
        POSTED,
        ("train.jsonl.gz line 41 is no JSON", "expected one object a line", "correct it"),
    ),
    "a corrupt image": (
        lambda here: write_images(here, image(kept=40)),
        IMAGES,
        ("train image at row 39 cannot be decoded", "expected a whole PNG or JPEG", "replace or drop it"),
    ),
    "an image of another size": (
        lambda here: write_images(here, image(side=31)),
        IMAGES,
        ("train image at row 39 is 31 x 31", "expected 32 x 32", "resize or drop it"),
    ),
    "a label that the head of ten lacks": (
        lambda here: write_images(here, label=10),
        IMAGES,
        ("train label 10 at row 39", "expected 0 to 9", "correct the row"),
    ),
    "a label that has no name": (
        lambda here: write_posts(here, [*POSTS, {"text": "a", "label": 20}]),
        POSTED,
        ("train label 20 at row 40", "expected 0 to 19", "correct it"),
    ),
    "a tokenizer without padding": (
        lambda here: save_gpt2(here, pad=None, end=None),
        POSTED,
        ("data.tokenizer", "has no padding and no end-of-text token", "set pad_token"),
    ),
    "no tokenizer": (
        forget_the_tokenizer,
        POSTED,
        ("data.tokenizer", "cannot be loaded", "give one with --data.tokenizer"),
    ),
    "another model's tokenizer": (
        lambda here: save_gpt2(here, tokens=6),
        POSTED,
        ("has token", "knows 0 to 5", "give the backbone's own tokenizer"),
    ),
    "a padding token behind the embeddings": (
        lambda here: save_gpt2(here, tokens=14, pad="[far]", words=("Newsgroup:", "[far]")),
        f"{POSTED} --data.task text_classification",
        ("has token 15", "knows 0 to 13", "give the backbone's own tokenizer"),
    ),
    "texts longer than the backbone reads": (
        make_posts_long,
        POSTED,
        ("train has texts of 103 tokens", "reads at most 32", "lower data.max_length"),
    ),
    "texts longer than RoBERTa reads, which counts from behind its padding": (
        make_posts_too_long_for_roberta,
        f"{POSTED} --data.task text_classification --data.max_length 33",
        ("train has texts of 33 tokens", "reads at most 32", "lower data.max_length"),
    ),
    "answers to be written past the backbone's last position": (
        write_problems,
        "--data GSM8K --data.path here --backbone.path here --data.max_new_tokens 29 --partition.clients 1"
        " --cohort_size 1",
        ("test has questions of 4 tokens", "up to 29", "reads at most 32", "lower data.max_new_tokens"),
    ),
    "a model that reads ahead": (
        lambda here: save_roberta(here, 300),
        POSTED,
        ("RobertaForCausalLM that reads texts in both directions", "data.task"),
    ),
    "answers without classes": (
        lambda here: save_gpt2(here),
        "--data tests.launch.test_bad_data.Unclassed --backbone.path here --data.path here",
        ("Unclassed has labels of shape (40, 3)", "classes=..."),
    ),
    "labels of mixed types": (
        lambda here: write_posts(here, [*POSTS, {"text": "a", "label": "sci.space"}]),
        COLUMNS,
        ("train.jsonl.gz has values in 'label'", "expected values of one type", "correct them"),
    ),
    "a text without a label": (
        lambda here: write_posts(here, [*POSTS, {"text": "a", "label": None}]),
        COLUMNS,
        ("train.jsonl.gz has no 'label' at row 40", "fill or drop it"),
    ),
    "a test label that nobody trains on": (
        lambda here: write_posts(here, [{"text": "ice", "label": 3}] * 40),
        COLUMNS,
        ("test label", "at row 0", "expected"),
    ),
    "all examples with one client": (
        lambda here: write_posts(here, [{**post, "user": "one"} for post in POSTS]),
        f"{COLUMNS} --data.user_column user --partition Natural",
        ("cohort_size is 10, but there are 1 clients", "partition.clients"),
    ),
    "a task that cannot be scored": (
        lambda here: None,
        "--data tests.launch.test_bad_data.OneLabel --data.path here",
        ("OneLabel", "its task Classification cannot be scored", "num_classes"),
    ),
    "images for a model of texts": (
        write_images_for_gpt2,
        f"{IMAGES} --backbone.path here",
        ("cannot be loaded with AutoModelForImageClassification",),
    ),
}


class Unclassed(DataSet):
    """Answers of which nobody says what they are about."""

    def __init__(self, path: str, cache: str) -> None:
        pass

    def load(self) -> FederatedData:
        return dataclasses.replace(tiny.answers(), classes=None)


class OneLabel(DataSet):
    """Images that all have the only label there is."""

    def __init__(self, path: str, cache: str) -> None:
        pass

    def load(self) -> FederatedData:
        data = tiny.images()
        train, test = (
            {**columns, "labels": torch.zeros_like(columns["labels"])} for columns in (data.train, data.test)
        )
        return FederatedData(train, test, ("a",), data.task)


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, options, says = CASES[case]
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    write(here)
    texts = POSTED in options or COLUMNS in options
    if texts and not list(here.glob("*.jsonl.gz")):
        write_posts(here)
    if texts and not (here / "config.json").exists():
        save_gpt2(here)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    status = main(["run", *options.split(), "--data.cache", str(cache), "--run_dir", "new"])
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("fedsim: ")
    assert err.count("\n") == 1
    assert [part for part in says if part not in err] == [], err
    assert not (tmp_path / "new").exists()
    kept = list(cache.iterdir()) if cache.exists() else []
    assert all(re.fullmatch(r"(tokens|images)-[0-9a-f]{32}\.npy", file.name) for file in kept), "half a file was left"
