"""Images as tensors: decoded once, kept in a file, and augmented, resized and normalised in batches on any device."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.errors import DataError
from data_partitions.reading.cache import cached_array

if TYPE_CHECKING:
    from torch import Tensor


def decode_images(
    cells: Sequence[bytes | None],
    size: tuple[int, int] | None = None,
    name: str = "image",
    paths: Sequence[str | None] | None = None,
) -> np.ndarray:
    """Decodes images of one size to RGB.

    Args:
        cells: the content of a PNG, JPEG, ... file each, at least one; None decodes to nothing and is refused.
        size: the height and width that every image must have; None for the first one's.
        name: what to call an image in errors, such as "train image".
        paths: where each image came from, for errors; None where nobody knows.

    Returns:
        uint8 (N, 3, H, W).

    Raises:
        DataError: for an image that cannot be decoded or has another size.
    """
    height, width = size or decode_image(cells[0], _where(name, 0, paths)).shape[:2]
    images = np.empty((len(cells), 3, height, width), dtype=np.uint8)
    for row, cell in enumerate(cells):
        pixels = decode_image(cell, _where(name, row, paths))
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{_where(name, row, paths)} is {pixels.shape[0]} x {pixels.shape[1]} pixels high and wide, expected"
                f" {height} x {width}: resize or drop it"
            )
        images[row] = pixels.transpose(2, 0, 1)
    return images


def cached_images(
    cells: Sequence[bytes | None],
    folder: str | Path,
    size: tuple[int, int] | None = None,
    name: str = "image",
    paths: Sequence[str | None] | None = None,
) -> np.ndarray:
    """Decodes images, or reads what an earlier call decoded from the same files with the same Pillow.

    Args:
        cells: as in `decode_images`.
        folder: where decoded images are kept, `~` allowed; made where missing.
        size: as in `decode_images`.
        name: as in `decode_images`.
        paths: as in `decode_images`.

    Returns:
        uint8 (N, 3, H, W).

    Raises:
        DataError: as in `decode_images`.
    """
    import PIL

    made_by = f"upright 8-bit RGB {size} Pillow {PIL.__version__}".encode()
    return cached_array(folder, "images", chain([made_by], cells), lambda: decode_images(cells, size, name, paths))


def decode_image(cell: bytes | None, where: str, square: int | None = None) -> np.ndarray:
    """Decodes one image to RGB, turned as its EXIF notes say; where these cannot be read it stays as it is stored.

    Args:
        cell: the content of a PNG, JPEG, ... file; None decodes to nothing and is refused.
        where: what to call the image in errors.
        square: None keeps the image as it is; a number scales it by bicubic interpolation such that its shorter side
            has as many pixels, and takes the middle.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: for an image that cannot be decoded, or has more than 8 bits a channel in one grey channel, which
            nothing says how to scale.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(cell or b"")) as image:
            _require_bytes(image.mode, where)
            image.load()
            with suppress(Exception):  # Broken notes raise anything, and the pixels are whole.
                ImageOps.exif_transpose(image, in_place=True)
            pixels = image.convert("RGB")
            return np.asarray(ImageOps.fit(pixels, (square, square)) if square else pixels)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does.
        reason = " ".join(str(error).split()).split(" <_io", 1)[0] or type(error).__name__
        raise DataError(
            f"{where} cannot be decoded ({reason}), expected a whole PNG or JPEG: replace or drop it"
        ) from error


def _require_bytes(mode: str, where: str) -> None:
    """Refuses Pillow's modes of wide integers and floats, which it would clip at 255."""
    if mode.startswith("I") or mode == "F":
        raise DataError(
            f"{where} has pixels of {'floats' if mode == 'F' else 'more than 8 bits'} (mode {mode}), expected 8 bits a"
            f" channel: scale them to 0 to 255 and write it again"
        )


def draw_crop_flip(generator: np.random.Generator, shape: tuple[int, ...], padding: int = 4) -> dict[str, Tensor]:
    """Draws what `random_crop_flip` needs.

    Args:
        generator: source of randomness.
        shape: how many examples and how they are laid out, such as (steps, B).
        padding: how far a crop moves at most, in pixels.

    Returns:
        `crop` int64 (*shape, 2), rows down and columns right, each in -padding to padding; `flip` bool (*shape).
    """
    import torch

    crop = generator.integers(-padding, padding, (*shape, 2), endpoint=True)
    return {"crop": torch.from_numpy(crop), "flip": torch.from_numpy(generator.random(shape) < 0.5)}


def random_crop_flip(images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Moves each image by its own offset, filling by reflection, and then mirrors some left to right.

    The same as padding by reflection, cropping to the old size and flipping, in one gather.

    Args:
        images: any dtype (B, C, H, W).
        draws: `crop` (B, 2) and `flip` (B,) as `draw_crop_flip` makes them, for images higher and wider than its
            padding; zeros change nothing.

    Returns:
        The same shape and dtype.
    """
    import torch

    height, width = images.shape[-2:]
    crop, flip = draws["crop"].long(), draws["flip"].bool()
    across = torch.arange(width, device=images.device)
    across = torch.where(flip[:, None], width - 1 - across, across)
    rows = _reflect(torch.arange(height, device=images.device) + crop[:, :1], height)
    columns = _reflect(across + crop[:, 1:], width)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    return images.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resizes by bicubic interpolation with antialiasing, overshoot at edges kept.

    Args:
        images: any dtype (B, C, H, W).
        size: the new height and width, one number for both.

    Returns:
        float32 (B, C, *size); images of that size already only change their dtype.
    """
    from torch.nn import functional

    size = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[-2:]) == size:
        return images.float()
    return functional.interpolate(images.float(), size=size, mode="bicubic", antialias=True)


def normalise(images: Tensor, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """Scales pixels of 0 to 255 as a backbone was pretrained with.

    Args:
        images: float (B, C, H, W), 0 to 255.
        mean: of pixels on a scale of 0 to 1; a tensor (C, 1, 1) on the same device for one per channel.
        std: likewise.

    Returns:
        The same shape and dtype.
    """
    return (images / 255 - mean) / std


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Mirrors positions outside 0 to size - 1 at the edge pixel, which is not repeated."""
    return size - 1 - (size - 1 - positions.abs()).abs()


def _where(name: str, row: int, paths: Sequence[str | None] | None) -> str:
    path = paths[row] if paths else None
    return f"{name} at row {row}" + (f" ({path})" if path else "")
