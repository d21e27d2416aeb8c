"""CIFAR-10: 60,000 photographs of 32x32 in ten classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.images.data import ImageData, require_statistics
from data_partitions.images.encoded import require_encoded
from data_partitions.images.pixels import cached_images
from data_partitions.reading.columns import load_columns, require_label_names

if TYPE_CHECKING:
    from torch import Tensor

LABEL_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32


class CIFAR10(DataSet):
    """Photographs of ten kinds of animals and vehicles; each of 50,000 for training and 10,000 for testing is 32x32.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, prepared as in FLASC (Kuo et
    al.), Section 4: resized to 224, random crops and flips in training.

    Args:
        path: a local folder with files or image folders `train` and `test` (see `load_columns`) or a hub id; columns
            `img` and `label`, whose names, where the data have names, are `LABEL_NAMES` in this order.
        image_size: height and width of what the backbone sees, at least 1.
        augment: whether training images are cropped (reflected by 4 pixels) and flipped at random.
        normalise: by which mean and deviation, those that the backbone was pretrained with: half for Google's ViT,
            imagenet for DeiT and most others (image_mean in a backbone's preprocessor_config.json).
        cache: the folder that keeps decoded images for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "uoft-cs/cifar10",
        image_size: int = 224,
        augment: bool = True,
        normalise: Literal["half", "imagenet"] = "half",
        cache: str = "~/.cache/fedsim",
    ) -> None:
        self.path = path
        self.image_size = require_whole("data.image_size", image_size, 1, 224)
        self.augment = augment
        self.normalise = require_statistics(normalise)
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads both splits.

        Returns:
            50,000 training and 10,000 test examples: pixel_values uint8 (N, 3, 32, 32), labels int64 (N,). `transform`
            makes float32 (B, 3, image_size, image_size) of about -1 to 1. Nobody is named as the photographer.

        Raises:
            DataError: where the data are missing, broken, or other than CIFAR-10's 32x32 images and ten labels.
        """
        return ImageData(
            train=self._load_split("train"),
            test=self._load_split("test"),
            label_names=LABEL_NAMES,
            task="image_classification",
            image_size=self.image_size,
            augment=self.augment,
            normalise=self.normalise,
        )

    def _load_split(self, split: str) -> dict[str, Tensor]:
        import torch

        found = load_columns(self.path, split, ("img", "label"))
        require_label_names(f"data.path {self.path!r}, {split},", found, LABEL_NAMES)
        table = found.with_format("arrow")[:]
        if len(table) == 0:
            raise DataError(f"data.path {self.path!r} has no rows in {split}, expected at least one: check its files")
        require_encoded(split, "img", table["img"])
        labels = table["label"].to_numpy()
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{split} column label holds {table['label'].type}, expected integers 0 to 9: number the labels"
            )
        cells = table["img"].to_pylist()
        images, paths = [cell["bytes"] for cell in cells], [cell.get("path") for cell in cells]
        pixels = cached_images(images, self.cache, (SIDE, SIDE), f"{split} image", paths)
        return {"pixel_values": torch.from_numpy(pixels), "labels": torch.from_numpy(labels.astype(np.int64))}
