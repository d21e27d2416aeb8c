"""CIFAR-10: 60,000 photographs of 32x32 in ten classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.columns import load_columns
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.images import cached_images, draw_crop_flip, normalise, random_crop_flip, resize

if TYPE_CHECKING:
    from torch import Tensor

LABEL_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
PADDING = 4
PIXEL_MEAN = 0.5
PIXEL_STD = 0.5
"""Mean and deviation that ViT was pretrained with, pixels on a scale of 0 to 1."""


class CIFAR10(DataSet):
    """Photographs of ten kinds of animals and vehicles; each of 50,000 for training and 10,000 for testing is 32x32.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, prepared as in FLASC (Kuo et
    al.), Section 4: resized to 224, random crops and flips in training.

    Args:
        path: a local folder with `train` and `test` files (see `load_columns`) or a hub id; columns `img` and `label`.
        image_size: height and width of what the backbone sees, at least 1.
        augment: whether training images are cropped (reflected by 4 pixels) and flipped at random.
        cache: the folder that keeps decoded images for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "uoft-cs/cifar10",
        image_size: int = 224,
        augment: bool = True,
        cache: str = "~/.cache/fedsim",
    ) -> None:
        if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
            raise DataError(f"data.image_size is {image_size!r}, expected a whole number of at least 1: give e.g. 224")
        self.path = path
        self.image_size = image_size
        self.augment = augment
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads both splits.

        Returns:
            50,000 training and 10,000 test examples: pixel_values uint8 (N, 3, 32, 32), labels int64 (N,). `transform`
            makes float32 (B, 3, image_size, image_size) of about -1 to 1. Nobody is named as the photographer.
        """
        return CIFAR10Data(
            train=self._load_split("train"),
            test=self._load_split("test"),
            label_names=LABEL_NAMES,
            task="image_classification",
            image_size=self.image_size,
            augment=self.augment,
        )

    def _load_split(self, split: str) -> dict[str, Tensor]:
        import torch

        table = load_columns(self.path, split, ("img", "label")).with_format("arrow")[:]
        if len(table) == 0:
            raise DataError(f"data.path {self.path!r} has no rows in {split}, expected at least one: check its files")
        kind = table["img"].type
        if "bytes" not in [kind.field(number).name for number in range(kind.num_fields)]:
            raise DataError(f"{split} column img holds {kind}, expected encoded images, {{bytes, path}}: encode them")
        labels = table["label"].to_numpy()
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{split} column label holds {table['label'].type}, expected integers 0 to 9: number the labels"
            )
        cells = [cell["bytes"] for cell in table["img"].to_pylist()]
        pixels = cached_images(cells, self.cache, (SIDE, SIDE), f"{split} image")
        return {"pixel_values": torch.from_numpy(pixels), "labels": torch.from_numpy(labels.astype(np.int64))}


@dataclass(frozen=True, eq=False)
class CIFAR10Data(FederatedData):
    """CIFAR-10 in memory, as bytes; cropped, flipped, resized and normalised a batch at a time.

    Args:
        image_size: height and width of the transformed images.
        augment: whether `draw` draws anything.
    """

    image_size: int = 224
    augment: bool = True

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draws crop offsets and flips; see `draw_crop_flip`."""
        return draw_crop_flip(generator, shape, PADDING) if self.augment else {}

    def transform(self, batch: dict[str, Tensor], draws: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Augments where there are draws, resizes and normalises; see `FederatedData.transform`."""
        images = batch["pixel_values"]
        if draws:
            images = random_crop_flip(images, draws)
        images = normalise(resize(images, self.image_size), PIXEL_MEAN, PIXEL_STD)
        return {**batch, "pixel_values": images}
