"""Feature skew: the same kinds of images everywhere, but every client sees its own noisier, or turned by an angle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.errors import DataError
from data_partitions.partition import Partition, Partitioner
from data_partitions.partitioners.iid import IID

if TYPE_CHECKING:
    from torch import Tensor

STRENGTHS = {"noise": 0.1, "rotation": 45.0}
"""The kinds, and how strong each is where nobody says."""

MAX_ANGLE = 180.0
BYTE = 255
PIECE_VALUES = 2**22
"""How many values of images are altered at a time: what lies beside the columns meanwhile stays below 100 MB."""


class FeatureSkew(Partitioner):
    """Deals like IID and changes every client's images in a way of its own: noise of another level, or another angle.

    Images change once, where they are stored: before augmentation, and the same in every round. Test images stay as
    they are, so the global model is evaluated on unaltered ones; what is held out of a client's own images is altered.

    noise: client i of C (from 0) gets Gaussian noise of deviation strength (i + 1) / C, where 1 is the range of a
    byte; floats, which a data set has scaled itself, get it on their own scale. Li et al. call the level a variance;
    their code uses it as the deviation, as here. It spreads the levels from 0 by i / (C - 1), draws anew whenever an
    image is read, and tests on images with every client's noise.

    rotation: clients are turned by angles spread evenly from -strength to strength degrees, the last client
    counter-clockwise, a single one not at all. Pixels are interpolated bilinearly; beyond an image its edge goes on.

    Source: Li et al. 2022, "Federated Learning on Non-IID Data Silos", noise-based feature imbalance; rotation after
    Ghosh et al. 2020 (IFCA), whose Rotated MNIST has four clusters of clients a quarter turn apart.

    Args:
        clients: how many clients, at least 1.
        kind: what differs between clients.
        strength: the largest deviation, 0 or more; or the largest angle in degrees, 0 to 180. 0 changes nothing; None
            is 0.1 for noise, as the source recommends, and 45 for rotation.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self, clients: int = 100, kind: Literal["noise", "rotation"] = "noise", strength: float | None = None
    ) -> None:
        self.clients = require_whole("partition.clients", clients, 1, 100)
        if kind not in STRENGTHS:
            raise DataError(f"partition.kind is {kind!r}, expected {' or '.join(STRENGTHS)}: give one of them")
        self.kind = kind
        given = STRENGTHS[kind] if strength is None else strength
        most = MAX_ANGLE if kind == "rotation" else math.inf
        is_number = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
        if not is_number or not 0 <= given <= most:
            scale = "a number of degrees from 0 to 180" if kind == "rotation" else "a finite number of at least 0"
            raise DataError(f"partition.strength is {strength!r}, expected {scale}: give e.g. {STRENGTHS[kind]:g}")
        self.strength = float(given)

    def split(self, labels: np.ndarray, user: np.ndarray | None, generator: np.random.Generator) -> Partition:
        """Deals every example once, as IID does; see `Partitioner.split`. What images become is not decided here."""
        dealt = IID(self.clients).split(labels, user, generator)
        arguments = {"clients": self.clients, "kind": self.kind, "strength": self.strength}
        return Partition(dealt.offsets, dealt.indices, {"partitioner": "FeatureSkew", **arguments})

    def levels(self) -> np.ndarray:
        """What every client gets, float64 (C,): deviations of noise, or angles in degrees."""
        if self.kind == "noise":
            return self.strength * np.arange(1, self.clients + 1) / self.clients
        return np.linspace(-self.strength, self.strength, self.clients) if self.clients > 1 else np.zeros(1)

    def alter(
        self, columns: dict[str, Tensor], partition: Partition, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """Makes every client's images its own; see `Partitioner.alter`.

        Args:
            columns: with `pixel_values` (N, C, H, W) of bytes or floats; bytes stay bytes, rounded and clipped.
            partition: what `split` made, or another of as many clients; images that nobody holds stay as they are.
            generator: drawn from for noise only.

        Raises:
            DataError: where there are no such images.
        """
        pixels = columns.get("pixel_values")
        if pixels is None:
            raise DataError(
                f"FeatureSkew was given data with columns {', '.join(columns)}, expected images, a column"
                " pixel_values: use another partitioner"
            )
        if pixels.ndim != 4 or not (pixels.is_floating_point() or str(pixels.dtype) == "torch.uint8"):
            raise DataError(
                f"FeatureSkew was given pixel_values {pixels.dtype} {tuple(pixels.shape)}, expected bytes or floats"
                " (N, C, H, W): use another partitioner"
            )
        levels = np.zeros(len(pixels))
        levels[partition.indices] = np.repeat(self.levels(), partition.sizes)
        rows = np.flatnonzero(levels)
        return (
            columns | {"pixel_values": self._altered(pixels, rows, levels[rows], generator)} if len(rows) else columns
        )

    def _altered(self, pixels: Tensor, rows: np.ndarray, levels: np.ndarray, generator: np.random.Generator) -> Tensor:
        """Copies the images (N, C, H, W) and changes these rows (M,) of the copy, piece by piece."""
        import torch

        exact = torch.float64 if pixels.dtype == torch.float64 else torch.float32
        is_bytes = pixels.dtype == torch.uint8
        altered = pixels.clone()
        step = max(1, PIECE_VALUES // max(1, pixels[0].numel()))
        for first in range(0, len(rows), step):
            chosen = torch.from_numpy(rows[first : first + step])
            level = torch.from_numpy(levels[first : first + step]).to(exact)
            images = pixels[chosen].to(exact)
            if self.kind == "noise":
                drawn = torch.from_numpy(generator.standard_normal(images.shape, dtype=np.float32))
                images += drawn * (level * (BYTE if is_bytes else 1))[:, None, None, None]
            else:
                images = rotate(images, level)
            altered[chosen] = (images.round().clamp(0, BYTE) if is_bytes else images).to(pixels.dtype)
        return altered


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns each image about its centre, keeping its size.

    Args:
        images: floats (B, C, H, W).
        degrees: the same dtype (B,), counter-clockwise.

    Returns:
        The same shape and dtype: bilinear interpolation, and the nearest edge pixel for what lay outside.
    """
    import torch
    from torch.nn import functional

    height, width = images.shape[-2:]
    angles = torch.deg2rad(degrees)
    cosine, sine, nothing = torch.cos(angles), torch.sin(angles), torch.zeros_like(angles)
    # Where each pixel is taken from. Coordinates go from -1 to 1 both ways, so a turn stretches unequal sides.
    across = torch.stack([cosine, -sine * (height / width), nothing], dim=1)
    down = torch.stack([sine * (width / height), cosine, nothing], dim=1)
    grid = functional.affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
