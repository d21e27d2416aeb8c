"""Whole runs on texts, with the paper's presets on tiny backbones: what travels, what is exported, what is recorded."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import yaml
from peft import PeftModel
from safetensors.torch import load_file

from data_partitions.datasets.twenty_newsgroups import LABEL_NAMES
from fedsim.backbone import quiet
from launch.__main__ import main
from tests.data_partitions.words import save_words

GROUPS = {8: ("engine", "rides", "fast"), 10: ("goalie", "saves", "ice"), 14: ("orbit", "launch", "moon")}
NAMES = {8: "rec.motorcycles", 10: "rec.sport.hockey", 14: "sci.space"}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHORT = ("--rounds", "3", "--partition.clients", "12", "--cohort_size", "4", "--evaluate_every_rounds", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posts of three groups, told apart by their words, and two backbones that can read them."""
    here, random = tmp_path_factory.mktemp("texts"), np.random.default_rng(3)
    for split, count in (("train", 240), ("test", 31)):
        labels = random.choice(list(GROUPS), count)
        rows = [{"text": " ".join(random.choice(GROUPS[n], random.integers(2, 9))), "label": int(n)} for n in labels]
        with gzip.open(here / f"{split}.jsonl.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    words = ("Newsgroup:", *LABEL_NAMES)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        ends = {"bos_token_id": 2, "eos_token_id": 3}
        gpt2 = hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=256, **ends)
        hf.GPT2LMHeadModel(gpt2).save_pretrained(here / "gpt2")
        hf.BertModel(hf.BertConfig(**SIZES, vocab_size=40)).save_pretrained(here / "bert")
    for name, pad in (("gpt2", None), ("bert", "[pad]")):
        save_words(here / name, pad=pad, words=words)
    return here


def run(folder: Path, preset: str, backbone: str, run_dir: Path, *more: str) -> dict[str, Any]:
    where = ("--data.path", str(folder), "--backbone.path", str(folder / backbone), "--data.cache", str(folder / "c"))
    assert main(["run", "--config", preset, *where, *SHORT, "--run_dir", str(run_dir), *more]) == 0
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def adapted(folder: Path, run_dir: Path, auto_class: Any, **options: Any) -> Any:
    with quiet():
        return PeftModel.from_pretrained(auto_class.from_pretrained(folder, **options), run_dir / "adapter").eval()


def test_the_papers_preset_trains_lora_alone_and_writes_names(folder: Path, tmp_path: Path) -> None:
    """GPT-2 with its language head frozen; greedy decoding with the exported adapter repeats the run's accuracy."""
    rates = ("--client.lr", "0.05", "--client.local_epochs", "3", "--method.lora_dropout", "0", "--server.lr", "0.05")
    more = ("--rounds", "10", "--data.scoring", "generation")
    summary = run(folder, "lora_20newsgroups", "gpt2", tmp_path / "run", *rates, *more)
    layers, rank, width = 2, 16, 32
    assert summary["trainable_parameters"] == layers * rank * (width + 3 * width)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["data"]["init_args"]["tokenizer"] == settings["backbone"]["path"] == str(folder / "gpt2")
    model = adapted(folder / "gpt2", tmp_path / "run", hf.AutoModelForCausalLM)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B"}
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "gpt2")
    with gzip.open(folder / "test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    right = 0
    for row in rows:
        question = tokenizer(f"{row['text']}\n\nNewsgroup:", return_tensors="pt")
        reply = model.generate(**question, max_new_tokens=2, do_sample=False, pad_token_id=3)
        written = reply[0, question["input_ids"].shape[1] :]
        right += tokenizer.decode(written) == f"{NAMES[row['label']]} [end]"
    assert summary["final"]["accuracy"] == pytest.approx(right / len(rows))
    assert right / len(rows) > 0.6, "it learned nothing, so the comparison says little"


def test_flasc_sends_a_quarter_of_lora_up_and_all_of_it_down(folder: Path, tmp_path: Path) -> None:
    summary = run(folder, "flasc_20newsgroups", "gpt2", tmp_path / "run", "--data.max_length", "32")
    n = summary["trainable_parameters"]
    with (tmp_path / "run" / "ledger.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["examples"])]
    assert {int(row["upload_values"]) for row in rows} == {n // 4}
    assert {int(row["download_values"]) for row in rows} == {n}


def test_a_head_on_an_encoder(folder: Path, tmp_path: Path) -> None:
    """MiniLM's preset on a tiny BERT without a pooler: the head trains and travels, and the export gives its logits."""
    more = ("--data.task", "text_classification", "--client.backbone_dropout", "true", "--client.pack", "2")
    summary = run(folder, "flasc_20newsgroups_small", "bert", tmp_path / "run", *more)
    assert summary["pack"] == 1, "a backbone's own dropout cannot be packed"
    again = run(folder, "flasc_20newsgroups_small", "bert", tmp_path / "packed", "--client.pack", "2")
    assert again["pack"] == 2
    labels = {"num_labels": 20}
    model = adapted(folder / "bert", tmp_path / "packed", hf.AutoModelForSequenceClassification, **labels)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "bert")
    with gzip.open(folder / "test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    texts = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).logits
    targets = torch.tensor([row["label"] for row in rows])
    loss = torch.nn.functional.cross_entropy(found, targets)
    assert again["final"]["loss"] == pytest.approx(float(loss), rel=1e-5)
