"""Every entry of the battery on the same workers, and what their collectives carried."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.datasets.digits import Digits
from data_partitions.images.data import ImageData
from launch.configuration import read_settings
from launch.environment import start_workers, stop_workers
from launch.experiment import run_on
from tests import tiny

FEW_DIGITS = (
    *("--data", "tests.battery.FewDigits", "--partition.clients", "8", "--rounds", "6", "--cohort_size", "5"),
    *("--client.batch_size", "8", "--client.local_epochs", "2"),
    *("--evaluate_every_rounds", "3", "--checkpoint_every_rounds", "2"),
)
"""What every entry has in common, on whichever backbone: five of eight clients a round, so that most come again, in the
next round or after one that they missed. Each takes two steps or more, as A has no gradient in the first one."""

CLIENTS = ("--evaluation.held_out", "0.2", "--evaluation.clients", "7", "--evaluation.local_epochs", "1")

BATTERY: dict[str, tuple[str, ...]] = {
    "AdapterLTH": ("--method.prune_fraction", "0.2"),
    "Centralised": (),
    "FedExLoRA": (),
    "FedIT": (),
    "FedSALoRA": CLIENTS,
    "FedSparsifyGlobal": ("--method.prune_fraction", "0.2"),
    "FederatedSelect": (),
    "FFALoRA": (),
    "FLASC": ("--method.upload_density", "0.0625", "--method.download_density", "0.25"),
    "FlexLoRA": (),
    "FLoRANA": (),
    "FLoRAStacking": (),
    "FullFineTuning": (),
    "HetLoRA": (),
    "HighestTierOnly": (),
    "LinearProbe": (),
    "LocalOnly": CLIENTS,
    "LoRA": ("--server.weighting", "examples"),
    "LoRAFAIR": (),
    "LowestTier": (),
    "RoLoRA": (),
    "SLoRA": ("--method.stage_one_rounds", "3"),
    "SparseAdapter": (),
    "SPDST": (),
}
"""Options by method, beside its name: every method there is has an entry."""

NOT_PACKED = {"FedSparsifyGlobal", "FullFineTuning", "SPDST"}
"""Methods that train more than linear layers, whose clients therefore train one after another."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "packed": ("--method", "FLASC", "--client.pack", "3", "--method.lora_dropout", "0.1", *CLIENTS),
    "layers": ("--method", "FLASC", "--method.topk_scope", "layer", "--communication.value_dtype", "bfloat16"),
    "adamw": (
        "--method",
        "FLASC",
        "--client.optimizer",
        "adamw",
        "--client.lr",
        "1e-3",
        "--method.lora_dropout",
        "0.1",
    ),
    "tiers": ("--method", "FLASC", "--method.tiers", "3"),
    "error feedback": ("--method", "FLASC", "--communication.error_feedback", "true", "--client.proximal_mu", "0.1"),
    "pruned ranks": (
        *("--method", "HetLoRA", "--method.tail_penalty", "0.01", "--method.rank_decay", "0.7"),
        *("--method.aggregation", "sparsity"),
    ),
    "private": (
        *("--method", "FLASC", "--cohort_sampling", "poisson", "--privacy.clip", "0.05"),
        *("--privacy.noise_multiplier", "0.5", "--privacy.clip_quantile", "0.5", "--privacy.clip_count_noise", "1"),
        *("--privacy.noise_from", "seed"),
    ),
    "features": ("--method", "LinearProbe", "--client.cache_features", "true"),
    "photographs": ("--method", "FLASC", "--data", "tests.battery.Photographs", "--backbone.path", "{here}/vit"),
    "answers": ("--method", "FLASC", "--data", "tests.battery.Answers", "--backbone.path", "{here}/gpt2_lm", *CLIENTS),
}


class FewDigits(DataSet):
    """Handwritten digits: 64 for the clients, so that a round of theirs is a few steps, and 120 for the test."""

    def load(self) -> FederatedData:
        """Leaves most of the examples out."""
        digits = Digits().load()
        train, test = (
            {name: column[:count] for name, column in split.items()}
            for split, count in ((digits.train, 64), (digits.test, 120))
        )
        return replace(digits, train=train, test=test)


class Photographs(DataSet):
    """Images that are augmented, and resized to another size than the backbone's, as CIFAR-10's are."""

    def load(self) -> FederatedData:
        """Draws them."""
        random = torch.Generator().manual_seed(2)

        def split(count: int) -> dict[str, torch.Tensor]:
            pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=random)
            return {"pixel_values": pixels, "labels": torch.randint(3, (count,), generator=random)}

        return ImageData(split(600), split(300), ("a", "b", "c"), "image_classification", image_size=12)


class Answers(DataSet):
    """Questions and answers for a language model."""

    def load(self) -> FederatedData:
        """Draws them."""
        return tiny.answers(train=600, test=300)


SAVED: dict[str, tuple[str, dict[str, int]]] = {
    "digits_vit": ("vit", {"num_labels": 10}),
    "vit": ("vit", {"num_channels": 3}),
    "gpt2_lm": ("gpt2_lm", {}),
}
"""The smallest backbones, by the folders that they are saved in."""


def entries(folder: Path) -> dict[str, list[str]]:
    """Every entry's options; the backbones that they name lie below a folder, and are saved where they do not yet."""
    for name, (kind, options) in SAVED.items():
        if not (folder / name).exists():
            tiny.save_backbone(folder / name, kind, **options)
    methods = {name: ("--method", name, *options) for name, options in BATTERY.items()}
    common = [*FEW_DIGITS, "--backbone.path", str(folder / "digits_vit")]
    return {name: common + [o.format(here=folder) for o in own] for name, own in {**methods, **VARIANTS}.items()}


class Spy:
    """Keeps the buffers that this worker put into collectives."""

    def __init__(self) -> None:
        self.carried: list[tuple[str, torch.Tensor]] = []
        for name in ("broadcast", "all_gather_single", "all_gather_into_tensor"):
            if hasattr(dist, name):
                setattr(dist, name, self._wrap(name, getattr(dist, name)))

    def _wrap(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            buffer = args[0] if name == "broadcast" else args[1]
            if buffer.dtype == torch.uint8:
                self.carried.append((name, buffer.clone()))
            return result

        return call


def run_all(folder: Path, names: Sequence[str]) -> None:
    """Runs entries as one of several workers; each leaves what it sent in FOLDER/<name>-carried-<rank>.pt."""
    fabric, workers = start_workers("cpu", "32-true", 1)
    spy = Spy()
    options_of = entries(folder)
    for name in names:
        options = options_of[name]
        spy.carried.clear()
        settings = read_settings([*options, "--run_dir", str(folder / name)])
        run_on(settings, fabric, workers, Console(quiet=True))
        torch.save(list(spy.carried), folder / f"{name}-carried-{workers.rank}.pt")
    stop_workers()
