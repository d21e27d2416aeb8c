"""Decoding, its cache, and what augmentation on tensors must keep."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from data_partitions.errors import DataError
from data_partitions.images import pixels as module
from data_partitions.images.pixels import (
    cached_images,
    decode_images,
    draw_crop_flip,
    normalise,
    random_crop_flip,
    resize,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 9, 7), dtype=np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 (3, H, W)."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


CELLS = [encode(pixels) for pixels in PIXELS]


def draws(crop: list[list[int]], flip: list[bool]) -> dict[str, torch.Tensor]:
    return {"crop": torch.tensor(crop), "flip": torch.tensor(flip)}


def test_decoding_is_exact_and_always_rgb() -> None:
    np.testing.assert_array_equal(decode_images(CELLS), PIXELS)
    grey = io.BytesIO()
    Image.fromarray(PIXELS[0, 0]).save(grey, "PNG")
    np.testing.assert_array_equal(decode_images([grey.getvalue()])[0], PIXELS[0, :1].repeat(3, axis=0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_notes_say(orientation: int) -> None:
    """A camera that is held sideways stores what it sees, and which side is up."""
    stored, notes = io.BytesIO(), Image.Exif()
    notes[0x0112] = orientation
    Image.fromarray(PIXELS[0].transpose(1, 2, 0)).save(stored, "PNG", exif=notes)
    turned = {
        1: PIXELS[0],
        2: PIXELS[0][:, :, ::-1],
        3: PIXELS[0][:, ::-1, ::-1],
        4: PIXELS[0][:, ::-1],
        5: PIXELS[0].transpose(0, 2, 1),
        6: PIXELS[0].transpose(0, 2, 1)[:, :, ::-1],
        7: PIXELS[0].transpose(0, 2, 1)[:, ::-1, ::-1],
        8: PIXELS[0].transpose(0, 2, 1)[:, ::-1],
    }
    np.testing.assert_array_equal(decode_images([stored.getvalue()])[0], turned[orientation])


def test_broken_notes_change_nothing() -> None:
    stored = io.BytesIO()
    Image.fromarray(PIXELS[0].transpose(1, 2, 0)).save(stored, "PNG", exif=b"Exif\x00\x00no notes")
    with Image.open(stored) as image, pytest.raises(SyntaxError):
        image.getexif()
    np.testing.assert_array_equal(decode_images([stored.getvalue()])[0], PIXELS[0])


@pytest.mark.parametrize(("dtype", "kind"), [("uint16", "PNG"), ("int32", "TIFF"), ("float32", "TIFF")])
def test_pixels_of_more_than_a_byte_are_refused(dtype: str, kind: str, tmp_path: Path) -> None:
    """Pillow would clip them at 255."""
    stored = io.BytesIO()
    Image.fromarray(PIXELS[0, 0].astype(dtype)).save(stored, kind)
    with pytest.raises(DataError, match=r"^test image at row 0 has pixels of .* expected 8 bits a channel: scale"):
        cached_images([stored.getvalue()], tmp_path / "cache", name="test image")


@pytest.mark.parametrize("broken", [b"", None, b"no image", CELLS[0][:-30], CELLS[0][:40]])
def test_a_corrupt_image_is_named_by_row(broken: bytes | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="test image at row 2 cannot be decoded") as caught:
        cached_images([*CELLS[:2], broken], tmp_path / "cache", name="test image")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_an_image_of_another_size_is_named_by_row() -> None:
    cells = [*CELLS, encode(np.zeros((3, 9, 8), dtype=np.uint8))]
    with pytest.raises(DataError, match="image at row 6 is 9 x 8 pixels high and wide, expected 9 x 7"):
        decode_images(cells)
    with pytest.raises(DataError, match="image at row 0 is 9 x 7 pixels high and wide, expected 9 x 9"):
        decode_images(cells, (9, 9))


def test_a_second_call_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(cached_images(CELLS, tmp_path / "new" / "cache"), PIXELS)
    monkeypatch.setattr(module, "decode_images", lambda *arguments: pytest.fail("decoded"))
    np.testing.assert_array_equal(cached_images(CELLS, tmp_path / "new" / "cache"), PIXELS)
    (file,) = (tmp_path / "new" / "cache").iterdir()
    with pytest.raises(pytest.fail.Exception):
        cached_images(CELLS[::-1], tmp_path / "new" / "cache")
    assert file.name.startswith("images-")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    cached_images(CELLS, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes({"cut": whole[:-5], "flipped": flipped, "empty": b"", "longer": whole + b"0"}[damage])
    np.testing.assert_array_equal(cached_images(CELLS, tmp_path), PIXELS)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [whole]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    np.testing.assert_array_equal(cached_images(CELLS, tmp_path / "file"), PIXELS)


def test_zero_offset_changes_nothing_and_two_flips_neither() -> None:
    given = torch.from_numpy(PIXELS)
    none, flip = draws([[0, 0]] * 6, [False] * 6), draws([[0, 0]] * 6, [True] * 6)
    assert torch.equal(random_crop_flip(given, none), given)
    assert torch.equal(random_crop_flip(given, flip), given.flip(3))
    assert torch.equal(random_crop_flip(random_crop_flip(given, flip), flip), given)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_the_gather_is_pad_crop_flip_of_each(dtype: torch.dtype) -> None:
    given = torch.from_numpy(PIXELS).to(dtype)
    made = draw_crop_flip(np.random.default_rng(3), (6,))
    padded = functional.pad(given.float(), (4, 4, 4, 4), mode="reflect").to(dtype)
    expected = []
    for image, (down, right), flip in zip(padded, (made["crop"] + 4).tolist(), made["flip"].tolist(), strict=True):
        crop = image[:, down : down + 9, right : right + 7]
        expected.append(crop.flip(2) if flip else crop)
    given_back = random_crop_flip(given, made)
    assert given_back.dtype == dtype
    assert torch.equal(given_back, torch.stack(expected))


def test_draws_replay_and_cover_their_range() -> None:
    first, again = (draw_crop_flip(np.random.default_rng(5), (40, 50)) for _ in range(2))
    assert first["crop"].shape == (40, 50, 2)
    assert first["flip"].shape == (40, 50)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["crop"].unique().tolist() == list(range(-4, 5))
    assert 0.45 < first["flip"].float().mean() < 0.55
    other = draw_crop_flip(np.random.default_rng(6), (40, 50))
    assert not torch.equal(first["crop"], other["crop"])


def test_rows_do_not_depend_on_their_batch() -> None:
    """Workers and pack sizes cut other batches; an image must come out with the same bits."""
    given = torch.from_numpy(PIXELS)
    together = resize(given, 20)
    assert all(torch.equal(resize(given[row : row + 1], 20)[0], together[row]) for row in range(6))


def test_resize_is_bicubic_with_antialias() -> None:
    given = torch.from_numpy(PIXELS)
    assert torch.equal(resize(given, (9, 7)), given.float())
    for size in (64, 5, (12, 3)):
        shape = (size, size) if isinstance(size, int) else size
        small = resize(given, size)
        assert small.shape == (6, 3, *shape)
        assert small.dtype == torch.float32
        pillow = Image.fromarray(PIXELS[0, 0].astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_allclose(small[0, 0], np.asarray(pillow), atol=0.01)


def test_normalise_by_number_or_channel() -> None:
    given = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1)
    assert normalise(given, 0.5, 0.5).flatten().tolist() == [-1, 0, 1]
    mean, std = torch.tensor([0.0, 0.5, 0.5]).view(3, 1, 1), torch.tensor([1.0, 1.0, 0.25]).view(3, 1, 1)
    assert normalise(given, mean, std).flatten().tolist() == [0, 0, 2]
