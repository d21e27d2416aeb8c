import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor, nn

from fedsim.adapters import ROLE_ENDINGS, ROLES, add_lora, export_adapter, merge_and_save, resolve_targets
from fedsim.backbone import load_backbone, quiet
from fedsim.errors import ConfigurationError

ATTENTION = ("query", "key", "value")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}
VIT = {**SIZES, "image_size": 16, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 20, "pad_token_id": 0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 20, "n_positions": 8, "num_labels": 3}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 20, "num_labels": 3}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 20, "num_labels": 3}
T5 |= {"decoder_start_token_id": 0}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
    "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**VIT)),
    "gpt2": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2)),
    "gpt2-causal": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**TEXT)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**DISTILBERT)),
    "llama": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**TEXT)),
    "llama-causal": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)),
    "t5": lambda: hf.T5ForSequenceClassification(hf.T5Config(**T5)),
    "t5-gated": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, feed_forward_proj="gated-gelu")),
}

VIT_5 = {"query": ["attention.q_proj"], "key": ["attention.k_proj"], "value": ["attention.v_proj"]}
VIT_5 |= {"output": ["attention.o_proj"], "mlp": ["mlp.fc1", "mlp.fc2"]}
GPT2_ROLES = {role: ["attn.c_attn"] for role in ATTENTION} | {
    "output": ["attn.c_proj"],
    "mlp": ["mlp.c_fc", "mlp.c_proj"],
}
BERT_ROLES = {role: [f"attention.self.{role}"] for role in ATTENTION}
BERT_ROLES |= {"output": ["attention.output.dense"], "mlp": ["*.intermediate.dense", "*.output.dense"]}
LLAMA_ROLES = {"query": ["self_attn.q_proj"], "key": ["self_attn.k_proj"], "value": ["self_attn.v_proj"]}
LLAMA_ROLES |= {"output": ["self_attn.o_proj"], "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]}
T5_ROLES = {
    role: [f"{kind}.{letter}" for kind in ("SelfAttention", "EncDecAttention")]
    for role, letter in zip(ROLES, "qkvo", strict=False)
}
EXPECTED: dict[str, dict[str, list[str]]] = {
    "vit": VIT_5,
    "deit": VIT_5,
    "gpt2": GPT2_ROLES,
    "gpt2-causal": GPT2_ROLES,
    "bert": BERT_ROLES,
    "roberta": BERT_ROLES,
    "distilbert": {
        **{role: [f"attention.{role[0]}_lin"] for role in ATTENTION},
        "output": ["attention.out_lin"],
        "mlp": ["ffn.lin1", "ffn.lin2"],
    },
    "llama": LLAMA_ROLES,
    "llama-causal": LLAMA_ROLES,
    "t5": {**T5_ROLES, "mlp": ["DenseReluDense.wi", "DenseReluDense.wo"]},
    "t5-gated": {**T5_ROLES, "mlp": ["DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"]},
}
VIT_4 = {role: [f"attention.attention.{role}"] for role in ATTENTION}
VIT_4 |= {"output": ["attention.output.dense"], "mlp": ["*.intermediate.dense", "*.output.dense"]}


def build(kind: str) -> nn.Module:
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return MODELS[kind]().eval().requires_grad_(False)


def stand_in(names: list[str]) -> nn.Module:
    """A model with the given linear layers and nothing else, for names that this transformers does not have."""
    root = nn.Module()
    for name in names:
        module, parts = root, name.split(".")
        for part in parts[:-1]:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.add_module(parts[-1], nn.Linear(2, 2))
    return root


def inputs(kind: str) -> dict[str, Tensor]:
    if kind in ("vit", "deit"):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}
    return {"input_ids": torch.tensor([[5, 6, 7, 1], [8, 9, 10, 1]])}


def adapted(kind: str, roles: tuple[str, ...] = ATTENTION, seed: int = 0) -> PeftModel:
    """A model whose LoRA and head have moved away from where they started."""
    model = add_lora(build(kind), 2, 4.0, 0.0, roles, seed)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def endings(names: list[str]) -> list[str]:
    """Names without layer numbers, each once."""
    return sorted({".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names})


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("role", ROLES)
def test_every_role_of_every_architecture(kind: str, role: str) -> None:
    found, expected = endings(resolve_targets(build(kind), [role])), EXPECTED[kind][role]
    assert all(any(name.endswith(end) for end in expected) for name in found)
    assert all(any(name.endswith(end) for name in found) for end in expected)


@pytest.mark.parametrize("role", ROLES)
def test_the_names_of_transformers_4(role: str) -> None:
    layers = [f"vit.encoder.layer.{i}.{end}" for i in (0, 11) for ends in VIT_4.values() for end in ends]
    layers = [name.replace("*.", "") for name in layers]
    found = resolve_targets(stand_in([*layers, "vit.pooler.dense", "classifier"]), [role])
    assert endings(found) == sorted(f"vit.encoder.layer.*.{end.removeprefix('*.')}" for end in VIT_4[role])
    assert len(found) == 2 * len(VIT_4[role])


@pytest.mark.parametrize("kind", MODELS)
def test_all_roles_together_leave_out_heads_and_poolers(kind: str) -> None:
    model = build(kind)
    targets = resolve_targets(model, ROLES)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | hf.pytorch_utils.Conv1D)]
    outside = ("classifier", "pre_classifier", "score", "lm_head", "classification_head", "bert.pooler")
    assert targets == [name for name in linear if not name.startswith(outside)]


def test_a_fused_layer_is_one_target_for_all_its_roles() -> None:
    model = build("gpt2")
    assert resolve_targets(model, ["value", "query"]) == resolve_targets(model, ATTENTION)
    assert len(resolve_targets(model, ATTENTION)) == 2


def test_the_table_has_every_role() -> None:
    assert tuple(ROLE_ENDINGS) == ROLES


def test_misspelt_and_missing_roles() -> None:
    with pytest.raises(ConfigurationError, match="unknown LoRA role 'querry'; did you mean query"):
        resolve_targets(build("vit"), ["querry"])
    with pytest.raises(ConfigurationError, match="no LoRA roles"):
        resolve_targets(build("vit"), [])


def test_a_role_that_nothing_plays_lists_the_candidates_once() -> None:
    model = stand_in([f"body.blocks.{i}.{name}" for i in range(12) for name in ("mixer", "mlp.fc1")])
    with pytest.raises(ConfigurationError) as caught:
        resolve_targets(model, ["mlp", "key"])
    assert str(caught.value) == (
        "no linear layer of Module plays the LoRA role 'key'; it has body.blocks.*.mixer, body.blocks.*.mlp.fc1"
    )


@pytest.mark.parametrize("kind", MODELS)
def test_lora_and_the_head_train_and_nothing_else(kind: str) -> None:
    backbone = build(kind)
    before = backbone(**inputs(kind)).logits if kind != "t5-gated" else None
    targets = resolve_targets(backbone, ROLES)
    model = add_lora(backbone, 2, 4.0, 0.1, ROLES, 0)

    names = trainable(model)
    layers = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names if ".lora_" in name}
    assert layers == set(targets)
    heads = {name for name in names if ".lora_" not in name}
    assert all(".modules_to_save.default." in name for name in heads)
    assert bool(heads) == ("Classification" in type(backbone).__name__)
    assert not model.training
    assert not any(module.training for module in model.modules())
    if before is not None:
        assert torch.equal(model(**inputs(kind)).logits, before)


def test_lora_comes_from_the_seed_alone() -> None:
    first = trainable(add_lora(build("bert"), 2, 4.0, 0.0, ATTENTION, 3))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = (trainable(add_lora(build("bert"), 2, 4.0, 0.0, ATTENTION, seed)) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(first) == list(again)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    assert all(not first[name].any() for name in first if "lora_B" in name)
    largest = max(first[name].abs().max().item() for name in first if "lora_A" in name)
    assert 0.2 < largest <= 16**-0.5  # Kaiming uniform with a = sqrt(5): the bound is 1 / sqrt(D_in)


@pytest.mark.parametrize("kind", ["deit", "roberta", "gpt2", "distilbert", "llama-causal"])
def test_what_trains_is_float32_on_a_bfloat16_backbone(kind: str) -> None:
    model = add_lora(build(kind).bfloat16(), 2, 4.0, 0.0, ATTENTION, 0)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    batch = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs(kind).items()}
    model(**batch).logits.float().square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trainable(model).values()
    )
    with model.disable_adapter():
        assert model(**batch).logits.isfinite().all()


def test_what_trains_is_float64_on_a_float64_backbone() -> None:
    model = add_lora(build("deit").double(), 2, 4.0, 0.0, ATTENTION, 0)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float64}


@pytest.mark.parametrize(
    ("rank", "alpha", "dropout", "message"),
    [
        (0, 4.0, 0.0, "lora_rank is 0"),
        (2, 0.0, 0.0, "lora_alpha is 0"),
        (2, float("nan"), 0.0, "lora_alpha is nan"),
        (2, 4.0, 1.0, "lora_dropout is 1"),
        (2, 4.0, -0.1, "lora_dropout is -0.1"),
    ],
)
def test_numbers_out_of_range(rank: int, alpha: float, dropout: float, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        add_lora(build("vit"), rank, alpha, dropout, ATTENTION, 0)


@pytest.mark.parametrize("kind", ["deit", "gpt2"])
def test_adding_and_saving_says_nothing(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """PEFT warns of Conv1D, transformers of gradient checkpointing, and both draw progress bars."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = add_lora(build(kind), 2, 4.0, 0.0, ATTENTION, 0)
        export_adapter(model, tmp_path / "adapter", "base")
        merge_and_save(model, tmp_path / "merged")
    assert capfd.readouterr() == ("", "")


def test_an_adapter_folder_holds_what_peft_reads(tmp_path: Path) -> None:
    model = adapted("gpt2")
    export_adapter(model, tmp_path / "run" / "adapter", "openai-community/gpt2")
    assert sorted(os.listdir(tmp_path / "run")) == ["adapter"]
    assert sorted(os.listdir(tmp_path / "run" / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "openai-community/gpt2"
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (2, 4.0, ["score"])
    assert config["target_modules"] == [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
    assert config["inference_mode"] is True
    assert model.peft_config["default"].inference_mode is False
    assert trainable(model)


def test_a_failed_export_leaves_the_former_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = adapted("deit"), tmp_path / "adapter"
    export_adapter(model, folder, "first")
    (folder / "stale").touch()
    export_adapter(model, folder, "second")
    assert not (folder / "stale").exists()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        export_adapter(model, folder, "third")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["adapter"]


def test_parameters_that_share_one_buffer_export_the_same(tmp_path: Path) -> None:
    """The engine holds what trains as views of one vector; safetensors alone refuses or bloats such tensors."""
    model = adapted("deit")
    export_adapter(model, tmp_path / "apart", "base")
    flat = torch.cat([parameter.detach().flatten() for parameter in trainable(model).values()])
    start = 0
    for parameter in trainable(model).values():
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    export_adapter(model, tmp_path / "flat", "base")
    merge_and_save(model, tmp_path / "merged")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "apart" / name).read_bytes() == (tmp_path / "flat" / name).read_bytes()
    assert all(p.data_ptr() - flat.data_ptr() < flat.nbytes for p in trainable(model).values())


@pytest.mark.parametrize("kind", ["deit", "gpt2", "gpt2-causal", "bert", "distilbert", "llama", "t5"])
def test_a_merged_model_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, ROLES)
    logits, values = model(**inputs(kind)).logits, [parameter.clone() for parameter in model.parameters()]
    merge_and_save(model, tmp_path / "merged")
    auto = hf.AutoModelForImageClassification if kind == "deit" else hf.AutoModelForSequenceClassification
    auto = hf.AutoModelForCausalLM if "causal" in kind else auto
    with quiet():
        merged = auto.from_pretrained(tmp_path / "merged")
    assert torch.allclose(merged(**inputs(kind)).logits, logits, rtol=0, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), values, strict=True))
    assert torch.equal(model(**inputs(kind)).logits, logits)


RELOAD = """
import sys, torch, transformers, peft
for job in torch.load(sys.argv[1]):
    auto = getattr(transformers, job["auto"])
    options = {"num_labels": 3, "ignore_mismatched_sizes": True} if "Causal" not in job["auto"] else {}
    model = peft.PeftModel.from_pretrained(auto.from_pretrained(job["base"], **options), job["adapter"]).eval()
    print(job["kind"], (model(**job["inputs"]).logits - job["logits"]).abs().max().item(), flush=True)
"""


def test_stock_peft_reloads_the_adapter_in_another_process(tmp_path: Path) -> None:
    """On a checkpoint without our head; with more targets than PEFT writes out in full; without BERT's pooler."""
    deep = hf.BertForMaskedLM(hf.BertConfig(**{**TEXT, "num_hidden_layers": 4}))
    sources = {
        "deit": (hf.DeiTModel(hf.DeiTConfig(**VIT)), "image_classification", "AutoModelForImageClassification"),
        "gpt2": (build("gpt2-causal"), "text_classification", "AutoModelForSequenceClassification"),
        "gpt2-causal": (build("gpt2-causal"), "language_modelling", "AutoModelForCausalLM"),
        "bert": (deep, "text_classification", "AutoModelForSequenceClassification"),
        "llama": (build("llama-causal"), "text_classification", "AutoModelForSequenceClassification"),
    }
    jobs = []
    for kind, (source, task, auto) in sources.items():
        base, adapter = tmp_path / kind, tmp_path / f"{kind}-adapter"
        with quiet():
            source.save_pretrained(base)
        model = add_lora(load_backbone(str(base), task, ["a", "b", "c"]), 2, 4.0, 0.0, ROLES, 0)
        for parameter in trainable(model).values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        export_adapter(model, adapter, str(base))
        logits = model(**inputs(kind)).logits.detach()
        jobs.append({"kind": kind, "auto": auto, "base": str(base), "adapter": str(adapter), "logits": logits})
        jobs[-1]["inputs"] = inputs(kind)
    torch.save(jobs, tmp_path / "jobs.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "jobs.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    differences = dict(line.split() for line in done.stdout.splitlines())
    assert set(differences) == set(sources)
    assert all(float(difference) <= 1e-6 for difference in differences.values()), differences
