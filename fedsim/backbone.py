"""The frozen pretrained model that every client shares: found by path or hub id, loaded, with a head for the labels."""

import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedsim.errors import ConfigurationError, unknown_name

AUTO_CLASSES: dict[str, Any] = {
    "image_classification": AutoModelForImageClassification,
    "text_classification": AutoModelForSequenceClassification,
    "text_to_text": AutoModelForCausalLM,
    "language_modelling": AutoModelForCausalLM,
    "generation": AutoModelForCausalLM,
    "multi_label_image_classification": AutoModelForImageClassification,
}
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
POOLER = re.compile(r".*\.pooler(?=\.)")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PROBE_SECONDS = 3.0


def load_backbone(
    path: str,
    task: str,
    labels: Sequence[str],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    pad_token_id: int | None = None,
) -> PreTrainedModel:
    """Loads a pretrained model for a task, frozen, in evaluation mode.

    A checkpoint whose head has another size than `labels` gets a fresh head, drawn from `seed` alone. The global
    random state is neither read nor changed, and code that comes with a checkpoint is never run.

    Args:
        path: a local folder (an existing path, or anything that starts with `/`, `.` or `~`) or a hub id `owner/name`,
            taken from the local hub cache where it lies there.
        task: one of `AUTO_CLASSES`.
        labels: the names of the labels, in the order of their numbers; not used by language models.
        dtype: the type of all weights.
        seed: what new weights are drawn from.
        pad_token_id: what the data pad texts with; the checkpoint's own where it is not given.

    Returns:
        The model, with every parameter frozen; `name_or_path` is the hub id, or the folder's absolute path.

    Raises:
        ConfigurationError: if the task is unknown, there are no labels, nothing can be found under `path` (the hub is
            given 3 seconds), or what is found cannot be loaded as a model for the task.
    """
    if task not in AUTO_CLASSES:
        raise unknown_name("task", task, AUTO_CLASSES)
    options: dict[str, Any] = {}
    if AUTO_CLASSES[task] is not AutoModelForCausalLM:
        if not labels:
            raise ConfigurationError(f"no labels given for the task {task}; expected at least one")
        options = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": "multi_label_classification" if task.startswith("multi_label") else None,
            "ignore_mismatched_sizes": True,
        }
    folder = _find_folder(path)
    options["local_files_only"] = folder is not None
    name = os.path.abspath(folder) if folder is not None and _is_local(path) else path
    backbone = _load(AUTO_CLASSES[task], str(folder or path), name, seed, dtype=dtype, **options)
    _settle(backbone, name)
    if AUTO_CLASSES[task] is AutoModelForCausalLM:
        _require_causal(backbone)
        if task != "language_modelling":
            _require_positions(backbone)
    if task == "text_classification":
        _ensure_pad_token(backbone, pad_token_id)
    return backbone


def head_modules(backbone: torch.nn.Module) -> list[str]:
    """Names the modules that are the head of a classification model, and so train whole.

    These are what stands beside its base model, and a pooler that `load_backbone` did not find in the checkpoint: its
    random weights would otherwise be in no file.

    Args:
        backbone: a transformers model.

    Returns:
        Names such as `classifier` or `score` (DistilBERT: `pre_classifier` and `classifier`), in the model's order;
        empty for anything but a model for classification: a language model's head belongs to the backbone.
    """
    if not re.search(r"For\w*Classification", type(backbone).__name__):
        return []
    base = getattr(backbone, "base_model_prefix", "")
    beside = [name for name, child in backbone.named_children() if name != base and list(child.parameters())]
    return [*getattr(backbone, "fresh_poolers", ()), *beside]


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, its warnings and progress bars, for a while: that a head is new is no news here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _is_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or os.path.exists(path)


def _find_folder(path: str) -> Path | None:
    """The folder that holds the model: local, or a snapshot in the hub cache; None where the hub must be asked."""
    if _is_local(path):
        folder = Path(path).expanduser()
        if lack := _lack(folder):
            raise ConfigurationError(f"backbone.path {path!r} {lack}; expected a folder written by save_pretrained")
        return folder
    if not HUB_ID.fullmatch(path):
        raise ConfigurationError(
            f"backbone.path {path!r} is no folder here and no hub id; expected a local folder or owner/name"
        )
    config = try_to_load_from_cache(path, "config.json")
    if isinstance(config, str) and not _lack(Path(config).parent):
        return Path(config).parent
    if failure := _probe_hub(path):
        raise ConfigurationError(
            f"backbone.path {path!r} is no folder here, not in the hub cache, and cannot be had from the hub "
            f"({failure}); give a downloaded model: --backbone.path FOLDER"
        )
    return None


def _lack(folder: Path) -> str | None:
    """What keeps a folder from being a saved model, as the end of a sentence; None where nothing does."""
    if not folder.exists():
        return "does not exist"
    if not folder.is_dir():
        return "is a file"
    if (folder / "adapter_config.json").is_file():
        return "is an adapter, not a model"
    if not (folder / "config.json").is_file():
        return "has no config.json"
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        return "has no weights (model.safetensors)"
    return _lacking_shard(weights) if weights.suffix == ".json" else None


def _lacking_shard(index: Path) -> str | None:
    """Reads the index of weights in several files; a download that was cut short leaves some of them out."""
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"has a broken {index.name}"
    return next((f"lacks {shard}" for shard in shards if not (index.parent / shard).is_file()), None)


def _probe_hub(hub_id: str) -> str | None:
    """Asks the hub once for a model's configuration; why that failed, or None.

    The thread bounds what no timeout of a socket does: name servers that do not answer, and redirects.
    """
    if constants.HF_HUB_OFFLINE:
        return "offline mode is on"
    failures: list[str | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=PROBE_SECONDS)
            failures.append(None)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {_first_line(error)}")

    thread = threading.Thread(target=ask, name="hub-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return failures[0] if failures else f"no answer within {PROBE_SECONDS:g} s"


def _load(auto_class: Any, source: str, name: str, seed: int, **options: Any) -> PreTrainedModel:
    """Runs from_pretrained quietly under its own random state and refuses a model whose body would be random."""
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed CUDA's generators too, which the fork above does not restore.
            torch.default_generator.manual_seed(seed)
            backbone, info = auto_class.from_pretrained(
                source, trust_remote_code=False, output_loading_info=True, **options
            )
    except Exception as error:
        raise ConfigurationError(
            f"backbone.path {name!r} cannot be loaded with {auto_class.__name__}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    fresh = {key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])}
    backbone.fresh_poolers = sorted({pooler.group() for key in fresh if (pooler := POOLER.match(key))})
    head = tuple(f"{module}." for module in head_modules(backbone))
    lost = sorted(key for key in fresh if not key.startswith(head))
    if lost:
        raise ConfigurationError(
            f"backbone.path {name!r} does not fill {type(backbone).__name__}: {len(lost)} of its tensors are missing "
            f"or have another shape, {lost[0]} among them; expected a checkpoint that fits its config.json"
        )
    return backbone


def _settle(backbone: PreTrainedModel, name: str) -> None:
    backbone.requires_grad_(False)
    backbone.eval()
    backbone.name_or_path = name
    backbone.config._name_or_path = name
    if hasattr(backbone.config, "use_cache"):
        backbone.config.use_cache = False


@torch.no_grad()
def _require_causal(backbone: PreTrainedModel) -> None:
    """Refuses a model that sees the words it is to predict, as which transformers silently loads BERT and its kin."""
    first, other = backbone(input_ids=torch.tensor([[0, 1, 2], [0, 1, 0]])).logits[:, 0]
    rounding = 10 * torch.finfo(first.dtype).eps * float(first.abs().max())
    if float((first - other).abs().max()) > rounding:
        raise ConfigurationError(
            f"backbone.path {backbone.name_or_path!r} is a {type(backbone).__name__} that reads texts in both "
            "directions; expected a language model that writes from left to right, or another task (data.task)"
        )


@torch.no_grad()
def _require_positions(backbone: PreTrainedModel) -> None:
    """Refuses a model that counts positions its own way: a question's padding would be part of its answer's scores."""
    plain = {"input_ids": [[1, 2, 3]], "position_ids": [[0, 1, 2]], "attention_mask": [[1, 1, 1]]}
    padded = {"input_ids": [[0, 1, 2, 3]], "position_ids": [[0, 0, 1, 2]], "attention_mask": [[0, 1, 1, 1]]}
    first, other = (
        backbone(**{name: torch.tensor(value) for name, value in inputs.items()}).logits[0, -1]
        for inputs in (plain, padded)
    )
    if float((first - other).abs().max()) > 0.05 * float(first.abs().max()):
        raise ConfigurationError(
            f"backbone.path {backbone.name_or_path!r} is a {type(backbone).__name__} that counts positions from the "
            "padding on; expected a language model that takes position_ids, such as GPT-2 or Llama"
        )


def _ensure_pad_token(backbone: PreTrainedModel, pad_token_id: int | None) -> None:
    """Names the padding token, by which GPT-2, Llama and others find a text's last token."""
    config = backbone.config.get_text_config()
    if pad_token_id is not None:
        config.pad_token_id = pad_token_id
    elif getattr(config, "pad_token_id", None) is None:
        end = getattr(config, "eos_token_id", None)
        config.pad_token_id = end[0] if isinstance(end, list) else end if end is not None else 0


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
