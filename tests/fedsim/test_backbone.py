import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    DeiTConfig,
    DeiTForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
)
from transformers.utils import logging as transformers_logging

from fedsim import backbone as backbone_module
from fedsim.backbone import head_modules, load_backbone, quiet
from fedsim.errors import ConfigurationError

LABELS = ["cat", "dog", "eel"]
DEIT_TINY = Path(__file__).resolve().parents[3] / "shared/data/models/deit-tiny-patch16-224"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_tiny(kind: str, folder: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    build: dict[str, Callable] = {
        "deit": lambda: DeiTForImageClassification(DeiTConfig(**sizes, image_size=16, patch_size=8, num_labels=7)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8, bos_token_id=1, eos_token_id=2)
        ),
        "bert": lambda: BertForMaskedLM(BertConfig(**sizes, vocab_size=20)),
        "llama": lambda: LlamaModel(LlamaConfig(**sizes, vocab_size=20)),
    }
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        build[kind]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("deit", tmp_path_factory.mktemp("deit"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub that may be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def refusal(path: str | Path, task: str = "text_classification") -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_backbone(str(path), task, LABELS)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_model_comes_frozen_and_in_evaluation_mode(gpt2: Path) -> None:
    model = load_backbone(str(gpt2), "language_modelling", [])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache is False
    assert model.name_or_path == model.config._name_or_path == str(gpt2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_relative_folder_is_named_by_its_absolute_path(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gpt2.parent)
    assert load_backbone(gpt2.name, "language_modelling", []).name_or_path == str(gpt2)
    assert load_backbone(f"./{gpt2.name}/.", "language_modelling", []).name_or_path == str(gpt2)


def test_the_head_has_the_labels(deit: Path) -> None:
    model = load_backbone(str(deit), "image_classification", LABELS)
    assert model.config.num_labels == model.classifier.out_features == 3
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    assert model.config.label2id == {"cat": 0, "dog": 1, "eel": 2}
    assert model(pixel_values=torch.rand(2, 3, 16, 16)).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["deit", "gpt2", "bert"])
def test_new_weights_come_from_the_seed_alone(kind: str, tmp_path: Path) -> None:
    """Workers load the backbone each for itself, whatever they drew before."""
    folder, task = save_tiny(kind, tmp_path), "image_classification" if kind == "deit" else "text_classification"
    first = load_backbone(str(folder), task, LABELS, seed=3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = (load_backbone(str(folder), task, LABELS, seed=seed) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), state)

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    names = {n for n, p in first.named_parameters() if not torch.equal(p, other.get_parameter(n))}
    heads = tuple(head_modules(first))
    assert names
    assert all(name.startswith(heads) for name in names)
    assert all(0 < first.get_parameter(name).std() < 0.1 for name in names)


def test_a_head_of_the_right_size_is_kept(deit: Path) -> None:
    stored = DeiTForImageClassification.from_pretrained(deit).classifier.weight
    model = load_backbone(str(deit), "image_classification", [str(i) for i in range(7)])
    assert torch.equal(model.classifier.weight, stored)


def test_what_the_checkpoint_lacks_belongs_to_the_head(tmp_path: Path) -> None:
    """A pooler that is random and frozen would be in no file that a run leaves, and the adapter useless without it."""
    model = load_backbone(str(save_tiny("bert", tmp_path)), "text_classification", LABELS)
    assert head_modules(model) == ["bert.pooler", "classifier"]


def test_a_language_model_has_no_head(gpt2: Path) -> None:
    for task in ("language_modelling", "text_to_text"):
        assert head_modules(load_backbone(str(gpt2), task, [])) == []


def test_text_classification_has_a_padding_token(gpt2: Path) -> None:
    model = load_backbone(str(gpt2), "text_classification", LABELS)
    assert model.config.pad_token_id == 2
    padded, bare = torch.tensor([[5, 6, 7, 2, 2]]), torch.tensor([[5, 6, 7]])
    assert torch.allclose(model(input_ids=padded).logits, model(input_ids=bare).logits, atol=1e-6)


def test_a_model_that_reads_ahead_cannot_learn_to_write(tmp_path: Path) -> None:
    """transformers loads BERT as a causal model without a word, and it would see the answers that it is scored on."""
    path = save_tiny("bert", tmp_path / "bert")
    with pytest.raises(ConfigurationError, match="BertLMHeadModel that reads texts in both directions"):
        load_backbone(str(path), "text_to_text", [])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        load_backbone(str(save_tiny("gpt2", tmp_path / "gpt2")), "text_to_text", [], dtype)


def test_a_model_that_counts_the_padding_cannot_answer(tmp_path: Path) -> None:
    """BART takes no position_ids: the same answer would score otherwise behind a padded question."""
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = BartConfig(vocab_size=60, d_model=16, max_position_embeddings=40, init_std=0.2, **sizes)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        BartForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="BartForCausalLM that counts positions from the padding on"):
        load_backbone(str(tmp_path), "text_to_text", [])
    load_backbone(str(tmp_path), "language_modelling", [])  # padding stands behind the text there


def test_texts_end_where_the_datas_padding_begins(gpt2: Path) -> None:
    """A tokenizer may pad with another token than the checkpoint names."""
    model = load_backbone(str(gpt2), "text_classification", LABELS, pad_token_id=9)
    padded, bare = torch.tensor([[5, 6, 2, 9, 9]]), torch.tensor([[5, 6, 2]])
    assert torch.allclose(model(input_ids=padded).logits, model(input_ids=bare).logits, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_all_weights_have_the_dtype(deit: Path, dtype: torch.dtype) -> None:
    model = load_backbone(str(deit), "image_classification", LABELS, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_loading_is_quiet_and_leaves_the_log_level(deit: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_backbone(str(deit), "image_classification", LABELS)
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


@pytest.mark.skipif(not DEIT_TINY.is_dir(), reason=f"needs the checkpoint in {DEIT_TINY}")
def test_a_real_checkpoint_gets_ten_labels() -> None:
    model = load_backbone(str(DEIT_TINY), "image_classification", [str(i) for i in range(10)], seed=5)
    torch.manual_seed(1)
    again = load_backbone(str(DEIT_TINY), "image_classification", [str(i) for i in range(10)], seed=5)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert 0.015 < model.classifier.weight.std() < 0.025
    assert model(pixel_values=torch.rand(1, 3, 224, 224)).logits.isfinite().all()


def test_misspelt_tasks_and_missing_labels() -> None:
    assert "did you mean image_classification" in refusal("x", "image_clasification")
    with pytest.raises(ConfigurationError, match="no labels"):
        load_backbone("x", "text_classification", [])


def test_paths_that_hold_no_model(tmp_path: Path, gpt2: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    assert "does not exist" in refusal("./absent")
    assert "does not exist" in refusal("~/absent-from-every-home")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text((gpt2 / "config.json").read_text())
    assert "no weights" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    assert "is an adapter" in refusal(tmp_path)


@pytest.mark.parametrize("path", ["gpt2", "", "a/b/c", "owner/na me", "https://huggingface.co/owner/name"])
def test_what_is_neither_folder_nor_hub_id(path: str) -> None:
    assert "expected a local folder or owner/name" in refusal(path)


def test_broken_checkpoints(tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path)
    config, weights = (folder / "config.json").read_text(), (folder / "model.safetensors").read_bytes()
    (folder / "config.json").write_text("{")
    assert "JSON" in refusal(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "SafetensorError" in refusal(folder)
    (folder / "model.safetensors").write_bytes(weights)
    assert "cannot be loaded with AutoModelForImageClassification" in refusal(folder, "image_classification")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Fresh weights are for heads: a random body, or a random frozen output of a language model, helps nobody."""
    folder = save_tiny("gpt2", tmp_path / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 2}))
    assert "transformer.h.1." in refusal(folder)
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": 9}))
    assert "transformer.wpe.weight" in refusal(folder)
    assert "lm_head.weight" in refusal(save_tiny("llama", tmp_path / "llama"), "language_modelling")


def test_lacking_shards_are_named(tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "lacks model-00002-of-00002.safetensors" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "broken model.safetensors.index.json" in refusal(folder)


def test_a_hub_id_is_taken_from_the_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub / "models--tiny--gpt2"
    save_tiny("gpt2", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(backbone_module, "_probe_hub", lambda hub_id: pytest.fail("asked the hub"))
    model = load_backbone("tiny/gpt2", "text_classification", LABELS)
    assert model.name_or_path == model.config._name_or_path == "tiny/gpt2"

    (repository / "snapshots" / COMMIT / "model.safetensors").unlink()
    monkeypatch.setattr(backbone_module, "_probe_hub", lambda hub_id: "not today")
    assert "not today" in refusal("tiny/gpt2")


def test_offline_mode_asks_nobody(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal("owner/name")
    assert "'owner/name'" in message
    assert "offline mode" in message
    assert "--backbone.path FOLDER" in message


def test_a_silent_hub_is_given_three_seconds(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is accepted and never answered is the worst case: transformers alone waits 46 seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        point_at(monkeypatch, listener.getsockname()[1])
        start = time.monotonic()
        message = refusal("owner/name")
        assert time.monotonic() - start < 15  # and not 46, on a busy machine either
    assert "--backbone.path FOLDER" in message


def point_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def served_hub(gpt2: Path) -> Iterator[int]:
    """A hub with one model, tiny/gpt2, as far as downloads ask for it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            file = gpt2 / Path(self.path).name
            known = self.path.startswith("/tiny/gpt2/resolve/")
            found = known and file.is_file()
            content = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("ETag", f'"{file.name}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_reachable_hub_is_downloaded_from(hub: Path, served_hub: int, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, served_hub)
    model = load_backbone("tiny/gpt2", "language_modelling", [])
    assert model.name_or_path == "tiny/gpt2"
    assert (hub / "models--tiny--gpt2" / "snapshots" / COMMIT / "model.safetensors").exists()
    assert "RepositoryNotFoundError" in refusal("tiny/absent")
