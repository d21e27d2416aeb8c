"""Images as a data set in memory: cropped, flipped, resized and normalised a batch at a time, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.dataset import FederatedData
from data_partitions.errors import DataError
from data_partitions.images.pixels import draw_crop_flip, normalise, random_crop_flip, resize

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIXEL_STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation of red, green and blue, on a scale of 0 to 1, that backbones were pretrained with."""


def require_statistics(name: str) -> str:
    """Checks the key data.normalise: returned where it is one of `PIXEL_STATISTICS`, a DataError for anything else."""
    if name not in PIXEL_STATISTICS:
        known = " or ".join(PIXEL_STATISTICS)
        raise DataError(f"data.normalise is {name!r}, expected {known}: give the backbone's")
    return name


@dataclass(frozen=True, eq=False)
class ImageData(FederatedData):
    """Images as bytes, pixel_values uint8 (N, 3, H, W); floats of the backbone's size a batch at a time.

    Args:
        image_size: height and width of the transformed images.
        augment: whether `draw` draws anything.
        normalise: which of `PIXEL_STATISTICS`.
        padding: how far a crop moves at most, in stored pixels; less than their height and width.
    """

    image_size: int = 224
    augment: bool = True
    normalise: str = "half"
    padding: int = 4

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draws crop offsets and flips; see `draw_crop_flip`."""
        return draw_crop_flip(generator, shape, self.padding) if self.augment else {}

    def transform(self, batch: dict[str, Tensor], draws: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Augments where there are draws, resizes and normalises; see `FederatedData.transform`."""
        images = batch["pixel_values"]
        if draws:
            images = random_crop_flip(images, draws)
        mean, std = _pixel_statistics(self.normalise, images.device)
        return {**batch, "pixel_values": normalise(resize(images, self.image_size), mean, std)}


@lru_cache
def _pixel_statistics(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation (3, 1, 1) on the device, made once: a copy to a GPU in every step would hold it up."""
    import torch

    # In float32 whatever torch's default is at the time: a precision context may have set another.
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1) for v in PIXEL_STATISTICS[name])
    return mean, std
