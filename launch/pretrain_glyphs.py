"""Makes the embedded backbone: a tiny ViT that has read letters, and never a digit.

`python -m launch.pretrain_glyphs` renders the 52 letters in the fonts that matplotlib ships, under random affine maps,
bends and stroke widths, reduces them as scikit-learn's digits were (a 32x32 bitmap, ink counted in blocks of 4x4) and
trains a classifier of letters. `Digits` runs adapt its weights, so that LoRA starts from a real pretrained model.
"""

from __future__ import annotations

import argparse
import math
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_partitions.datasets.digits import normalise

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

ALPHABET = string.ascii_uppercase + string.ascii_lowercase

TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10"),
)
HELD_OUT_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
"""A family that training never sees. The other fonts of matplotlib lack letters or map their codes to symbols."""

MASTER_PIXELS = 64
MASTER_MARGIN = 8
BITMAP_PIXELS = 32
DIRECTIONS = 32


@dataclass(frozen=True, eq=False)
class Masters:
    """Every letter in every font once, at high resolution.

    Args:
        distance: float32 (G, 1, 64, 64), pixels to the nearest edge of the stroke, positive inside.
        hull: float32 (G, 32, 2), the outermost ink in 32 directions as (x, y) from -1 to 1.
        labels: int64 (G,), places in `ALPHABET`.
    """

    distance: Tensor
    hull: Tensor
    labels: Tensor


def draw_masters(fonts: Sequence[str]) -> Masters:
    """Draws the alphabet.

    Args:
        fonts: names of matplotlib's TTF files, without the ending.

    Returns:
        One master per font and letter.
    """
    import matplotlib
    from PIL import ImageFont
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    fields, hulls = [], []
    for name in fonts:
        font = ImageFont.truetype(folder / f"{name}.ttf", 2 * MASTER_PIXELS)
        for letter in ALPHABET:
            ink = _draw_letter(letter, font)
            fields.append(distance_transform_edt(ink) - distance_transform_edt(~ink))
            points = (np.argwhere(ink)[:, ::-1] + 0.5) * 2 / MASTER_PIXELS - 1
            hulls.append(points[(points @ directions).argmax(0)])
    labels = torch.arange(len(ALPHABET)).repeat(len(fonts))
    distance = torch.from_numpy(np.stack(fields)).float().unsqueeze(1)
    return Masters(distance, torch.from_numpy(np.stack(hulls)).float(), labels)


def _draw_letter(letter: str, font: FreeTypeFont) -> np.ndarray:
    """One letter, black on white, scaled to fit a master: bool (64, 64), True where there is ink."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = (int(edge) for edge in font.getbbox(letter))
    drawing = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(drawing).text((-left, -top), letter, font=font, fill=255)
    room = MASTER_PIXELS - 2 * MASTER_MARGIN
    scale = room / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    master = Image.new("L", (MASTER_PIXELS, MASTER_PIXELS))
    corner = ((MASTER_PIXELS - width) // 2, (MASTER_PIXELS - height) // 2)
    master.paste(drawing.resize((width, height)), corner)
    return np.asarray(master) > 127


def render(masters: Masters, picks: Tensor, generator: torch.Generator) -> Tensor:
    """Renders letters, each under its own random map, bend, stroke width and noise.

    Args:
        masters: the letters to choose from.
        picks: int64 (B,), which masters.
        generator: the only source of randomness.

    Returns:
        float32 (B, 1, 8, 8), whole counts of ink from 0 to 16.
    """
    batch = len(picks)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    stroke = uniform(-3.2, 0.3)
    linear, offset = _random_maps(masters.hull[picks], (-stroke).clamp(min=0) * 2 / MASTER_PIXELS, uniform)
    # grid_sample asks where each output pixel comes from: the inverse map.
    inverse = torch.linalg.inv(linear)
    theta = torch.cat([inverse, -inverse @ offset.unsqueeze(2)], 2)
    grid = F.affine_grid(theta, [batch, 1, BITMAP_PIXELS, BITMAP_PIXELS], align_corners=False)
    # Handwriting bends where type is straight: without this, LoRA on digits ended almost 2 points lower.
    bends = torch.randn(batch, 2, 4, 4, generator=generator) * uniform(0, 0.18).view(-1, 1, 1, 1)
    bends = F.interpolate(bends, size=(BITMAP_PIXELS, BITMAP_PIXELS), mode="bicubic", align_corners=True)
    grid = grid + bends.permute(0, 2, 3, 1)
    field = F.grid_sample(masters.distance[picks], grid, padding_mode="border", align_corners=False)
    # The thinnest strokes keep some ink whatever was drawn.
    threshold = torch.minimum(stroke, 0.4 * field.amax((1, 2, 3)))
    counts = 16 * F.avg_pool2d((field > threshold.view(-1, 1, 1, 1)).float(), 4)
    noise = torch.randn(counts.shape, generator=generator) * uniform(0, 1.5).view(-1, 1, 1, 1)
    # Paper stays white: scans of digits have noisy strokes and clean margins.
    return (counts + noise * (counts > 0)).round().clamp(0, 16)


def _random_maps(hull: Tensor, thicker: Tensor, uniform: Any) -> tuple[Tensor, Tensor]:
    """Draws a linear map (B, 2, 2) and an offset (B, 2) per letter, so that it nearly fills the bitmap."""
    turn, shear = uniform(-0.25, 0.25), uniform(-0.35, 0.35)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    linear = rotation @ torch.stack([one, shear, zero, one], 1).view(-1, 2, 2)
    placed = hull @ linear.transpose(1, 2)
    low, high = placed.amin(1) - thicker.unsqueeze(1), placed.amax(1) + thicker.unsqueeze(1)
    extent = high - low
    height = uniform(1.75, 2.0)
    width = (height * extent[:, 0] / extent[:, 1] * uniform(0.7, 1.1)).clamp(0.5, 1.9)
    scale = torch.stack([width, height], 1) / extent
    spare = 2 - torch.stack([width, height], 1)
    shift = torch.stack([uniform(-0.35, 0.35), uniform(-0.5, 0.5)], 1) * spare
    return scale.unsqueeze(2) * linear, shift - scale * (low + high) / 2


def make_model() -> Any:
    """A ViT of about 139,000 parameters that names one of the 52 letters in an 8x8 image; weights from torch's seed."""
    from transformers import ViTConfig, ViTForImageClassification

    names = dict(enumerate(ALPHABET))
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    return ViTForImageClassification(config)


def train(model: Any, masters: Masters, steps: int, batch_size: int, lr: float, generator: torch.Generator) -> None:
    """Trains on fresh renderings, with AdamW, a tenth of the steps warming up and a cosine to zero."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    model.train()
    for step in range(steps):
        progress = step / steps
        factor = min(progress * 10, 0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        picks = torch.randint(len(masters.labels), (batch_size,), generator=generator)
        images = to_pixels(render(masters, picks, generator))
        loss = F.cross_entropy(model(pixel_values=images).logits, masters.labels[picks])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f}", flush=True)


def to_pixels(counts: Tensor) -> Tensor:
    """Counts of ink (B, 1, 8, 8) as the model reads them, scaled by the constants of `Digits`."""
    return torch.from_numpy(normalise(counts.numpy()))


@torch.no_grad()
def measure(model: Any, masters: Masters, seed: int, examples: int) -> tuple[float, float]:
    """The share of fresh renderings named right, 0 to 1: the exact letter, and the letter in either case."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(masters.labels), (examples,), generator=generator)
    model.eval()
    guesses = model(pixel_values=to_pixels(render(masters, picks, generator))).logits.argmax(1)
    labels, half = masters.labels[picks], len(ALPHABET) // 2
    exact, either = guesses == labels, guesses % half == labels % half
    return exact.float().mean().item(), either.float().mean().item()


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrains, prints the accuracies and saves config.json and model.safetensors."""
    parser = argparse.ArgumentParser(prog="python -m launch.pretrain_glyphs", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "backbones" / "glyphs", help="folder to fill"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, choice of letters and their renderings")
    parser.add_argument("--steps", type=int, default=3600, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=128, help="renderings per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--held-out", type=int, default=5200, help="renderings that each accuracy is measured on")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    started = time.monotonic()
    masters = draw_masters(TRAIN_FONTS)
    model = make_model()
    generator = torch.Generator().manual_seed(options.seed)
    train(model, masters, options.steps, options.batch_size, options.lr, generator)
    for name, letters in (("known fonts", masters), ("unseen fonts", draw_masters(HELD_OUT_FONTS))):
        exact, either = measure(model, letters, options.seed + 1, options.held_out)
        print(f"{name}, new renderings: {exact:.3f} of letters, {either:.3f} in either case")
    model.save_pretrained(options.out)
    print(f"saved {options.out} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
