"""The works that `fedsim bench` measures: a model, its data, and how much of it is a round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from data_partitions.dataset import FederatedData
from data_partitions.datasets.cifar10 import LABEL_NAMES, SIDE
from data_partitions.datasets.digits import Digits
from data_partitions.images.data import ImageData
from data_partitions.texts.tokens import NO_TOKEN, TextData
from fedsim.backbone import load_backbone
from launch.registry import BACKBONES
from methods.linear_probe import LinearProbe
from methods.lora import LoRA

BERT_VOCABULARY = 30_522
TEXTS, LONGEST = 2000, 64
"""How many texts are drawn for training, and the most tokens of one."""

Round = Callable[[int], Tensor]
"""Trains the cohort of a round from the common start; returns the mean update, (P,)."""


@dataclass(frozen=True)
class Work:
    """One size of work.

    Attributes:
        name: what the table calls it.
        data: makes the data set, images with labels; the same every time.
        model: makes the adapted backbone for it; the same weights every time.
        batch_size: examples a step.
        arguments: what the model is called with beside a batch.
        clients: trained a round.
        steps: local steps of each.
        population: how many clients there are to choose from, where there are examples enough for their steps.
        bf16: whether matrix products are in bfloat16, under autocast; P and the optimiser stay float32.
    """

    name: str
    data: Callable[[], FederatedData]
    model: Callable[[FederatedData], nn.Module]
    batch_size: int
    arguments: dict[str, Any] = field(default_factory=dict)
    clients: int = 10
    steps: int = 5
    population: int = 100
    bf16: bool = False


def digits() -> FederatedData:
    """Loads handwritten digits, 8x8."""
    return Digits().load()


def tiny_vit(data: FederatedData) -> nn.Module:
    """Loads the embedded backbone, with LoRA of rank 8 on query, key and value."""
    backbone = load_backbone(str(BACKBONES / "glyphs"), data.task, data.label_names)
    return LoRA(lora_rank=8).setup(backbone, seed=0)


def tiny_probe(data: FederatedData) -> nn.Module:
    """Loads the embedded backbone, whose head alone trains."""
    backbone = load_backbone(str(BACKBONES / "glyphs"), data.task, data.label_names)
    return LinearProbe().setup(backbone, seed=0)


def random_photographs() -> FederatedData:
    """Draws bytes that go through CIFAR-10's crops, flips and bicubic resize, to 64x64: speed asks for no real ones."""
    random = torch.Generator().manual_seed(0)

    def split(examples: int) -> dict[str, Tensor]:
        pixels = torch.randint(256, (examples, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
        return {"pixel_values": pixels, "labels": torch.randint(len(LABEL_NAMES), (examples,), generator=random)}

    return ImageData(split(2000), split(10), LABEL_NAMES, "image_classification", image_size=64)


def deit_tiny(data: FederatedData) -> nn.Module:
    """Makes a backbone of DeiT-Tiny's shape with random weights, and LoRA of rank 16 on key and value.

    No download, because speed does not depend on the weights. Source of the shape: Touvron et al. 2021, "Training
    data-efficient image transformers & distillation through attention", Table 1; of the adapter: the preset
    flasc_cifar10_small.
    """
    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        backbone = ViTForImageClassification(ViTConfig(**sizes, num_labels=len(data.label_names)))
    backbone.requires_grad_(False).eval()
    return LoRA(lora_rank=16, lora_targets="key,value").setup(backbone, seed=0)


def random_texts() -> FederatedData:
    """Draws texts of 64 tokens, none of which is padding."""
    return _texts(np.full(TEXTS, LONGEST))


def short_texts() -> FederatedData:
    """Draws texts of 3 to 64 tokens, 13 on average: three, and a geometric number, as most phrases are short."""
    return _texts(np.minimum(LONGEST, 3 + np.random.default_rng(0).geometric(1 / 11, TEXTS) - 1))


def padded_texts() -> FederatedData:
    """The same texts, all as long as the longest in every batch."""
    data = short_texts()
    return PaddedTexts(data.train, data.test, data.label_names, data.task, pad_token_id=data.pad_token_id)


class PaddedTexts(TextData):
    """Texts of which nobody says how long they are."""

    def spans(self, columns: dict[str, Tensor]) -> None:  # type: ignore[override]
        """Says nothing."""


def _texts(lengths: np.ndarray) -> FederatedData:
    random = torch.Generator().manual_seed(0)

    def split(lengths: np.ndarray) -> dict[str, Tensor]:
        tokens = torch.randint(BERT_VOCABULARY, (len(lengths), LONGEST), dtype=torch.int32, generator=random)
        tokens[torch.arange(LONGEST) >= torch.from_numpy(lengths)[:, None]] = NO_TOKEN
        return {"input_ids": tokens, "labels": torch.randint(2, (len(lengths),), generator=random)}

    return TextData(split(lengths), split(lengths[:10]), ("no", "yes"), "text_classification", pad_token_id=0)


def minilm(data: FederatedData, layers: int = 6) -> nn.Module:
    """Makes a backbone of MiniLM's shape with random weights, and LoRA of rank 16 on query, key and value.

    Source of the shape: the configuration of sentence-transformers/all-MiniLM-L6-v2; of the adapter: the preset
    flasc_20newsgroups_small.
    """
    sizes = {"hidden_size": 384, "num_hidden_layers": layers, "num_attention_heads": 12, "intermediate_size": 1536}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = BertConfig(**sizes, vocab_size=BERT_VOCABULARY, num_labels=len(data.label_names))
        backbone = BertForSequenceClassification(config)
    backbone.requires_grad_(False).eval()
    return LoRA(lora_rank=16).setup(backbone, seed=0)


RESIZED = {"interpolate_pos_encoding": True}
WORKS = (
    *(Work(f"tiny ViT, batch {size}", digits, tiny_vit, size) for size in (16, 4, 1)),
    *(Work(f"DeiT-Tiny 64 px, batch {size}", random_photographs, deit_tiny, size, RESIZED) for size in (16, 4)),
    Work("MiniLM 64 tokens, batch 16", random_texts, minilm, 16),
)
