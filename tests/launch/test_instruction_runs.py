"""Whole runs that learn to write answers, with the presets on a tiny Llama: what is scored, and only where asked."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from fedsim.backbone import quiet
from launch.__main__ import main
from launch.configuration import read_settings
from tests.data_partitions.words import save_words

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHORT = ("--partition.clients", "4", "--cohort_size", "4", "--evaluate_every_rounds", "100")
FAST = ("--client.lr", "0.02", "--server.lr", "0.05", "--client.local_epochs", "4", "--client.pack", "4")
EVERYWHERE = ("--method.lora_targets", "query,key,value,output,mlp")
HEAD = 'def two():\n    """The number 2."""'
WORDS = ("Question:", "Answer:", "####", "7", "8", "### Instruction:", "### Response:", "def two():", "    return 2")


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems that all have one answer, in the test split but for one; instructions likewise; two backbones."""
    here = tmp_path_factory.mktemp("instructions")
    rows = [{"question": f"the {word} rides", "answer": "fast\n#### 7"} for word in ("goalie", "engine")]
    program = "def two():\n    return 2"
    problem = {
        "task_id": "HumanEval/0",
        "prompt": f"{HEAD}\n",
        "canonical_solution": "    return 2\n",
        "test": "def check(candidate):\n    assert candidate() == 2\n",
        "entry_point": "two",
    }
    write(here / "gsm8k/train.jsonl", rows * 16)
    write(here / "gsm8k/test.jsonl", [*rows, {"question": "the moon", "answer": "fast fast fast fast\n#### 8"}])
    asked = f"Create a Python script for this problem:\n{HEAD}"
    write(here / "code/train.jsonl", [{"instruction": asked, "input": "", "output": program}] * 8)
    write(here / "tests/HumanEval.jsonl", [problem, problem | {"task_id": "HumanEval/1", "entry_point": "three"}])
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        llama = hf.LlamaConfig(**SIZES, **ends, vocab_size=32, max_position_embeddings=512, initializer_range=0.3)
        for name, between in (("gsm8k_llama", r"\s"), ("code_llama", r"\n")):
            hf.LlamaForCausalLM(llama).save_pretrained(here / name)
            save_words(here / name, words=WORDS, between=between)
    return here


def run(folder: Path, preset: str, name: str, run_dir: Path, *more: str) -> list[dict[str, str]]:
    """Runs a preset and returns the rows of its metrics.csv."""
    where = ("--data.path", str(folder / name), "--backbone.path", str(folder / f"{name}_llama"))
    given = ("--data.cache", str(folder / "c"), "--run_dir", str(run_dir), *SHORT, *FAST, *EVERYWHERE, *more)
    assert main(["run", "--config", preset, *where, *given]) == 0
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_gsm8k_is_learned_and_scored(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(folder, "lora_gsm8k", "gsm8k", tmp_path / "run", "--rounds", "5", "--data.max_new_tokens", "6")
    scores = [float(row["exact_match"]) for row in rows]
    assert len(scores) == 2
    note = "1 of 3 reference answers are longer than data.max_new_tokens and were cut"
    assert note in capsys.readouterr().out.splitlines()
    assert scores[0] == 0
    assert scores[-1] == pytest.approx(2 / 3), "it writes the one answer that it has learned"
    assert list(rows[0])[5:7] == ["exact_match", "loss"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["higher_is_better"] == {"exact_match": True, "loss": False}
    assert summary["final"]["exact_match"] == scores[-1]


def test_code_is_scored_by_running_it(folder: Path, tmp_path: Path) -> None:
    """The one program that there is solves one problem of two; without the flag the loss is all there is."""
    short = ("--data.max_new_tokens", "6", "--data.test_path", str(folder / "tests"))
    flag = ("--data.run_generated_code", "true", "--rounds", "8")
    rows = run(folder, "flasc_code_alpaca", "code", tmp_path / "with", *short, *flag)
    assert float(rows[-1]["pass_at_1"]) == 0.5
    without = run(folder, "flasc_code_alpaca", "code", tmp_path / "without", *short, "--rounds", "1")
    assert not [name for name in without[0] if "pass" in name or "match" in name]
    assert without[0]["loss"] == rows[0]["loss"]


@pytest.mark.parametrize("data", ["gsm8k", "code_alpaca"])
def test_twins_differ_in_the_method_alone(data: str) -> None:
    flasc, lora = (read_settings(["--config", f"{name}_{data}"]).resolved for name in ("flasc", "lora"))
    own = {"upload_density", "download_density", "topk_scope", "evaluate_before_step", "tiers", "tier_base"}
    ours, theirs = flasc.pop("method"), lora.pop("method")
    assert flasc == lora
    assert {k: v for k, v in ours["init_args"].items() if k not in own} == theirs["init_args"]
