"""The embedded backbone: small, loadable with no network, and trained on letters only."""

import json
from pathlib import Path

import pytest
import torch

from launch import pretrain_glyphs as glyphs

BACKBONE = Path(glyphs.__file__).parent / "backbones" / "glyphs"


@pytest.fixture(scope="module")
def masters() -> glyphs.Masters:
    return glyphs.draw_masters(("DejaVuSans", "cmr10"))


def render(masters: glyphs.Masters, seed: int) -> torch.Tensor:
    picks = torch.arange(len(masters.labels))
    return glyphs.render(masters, picks, torch.Generator().manual_seed(seed))


def test_no_digit_is_in_the_alphabet() -> None:
    """What `Digits` runs measure is adaptation: the backbone must never have seen a digit."""
    assert len(set(glyphs.ALPHABET)) == 52
    assert all(letter.isalpha() for letter in glyphs.ALPHABET)
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.HELD_OUT_FONTS)


def test_every_font_has_the_letters() -> None:
    """A font that lacks letters draws the same box for each; at equal size a few letters coincide, such as I and l."""
    for font in (*glyphs.TRAIN_FONTS, *glyphs.HELD_OUT_FONTS):
        drawn = glyphs.draw_masters((font,))
        assert len({field.numpy().tobytes() for field in drawn.distance}) > 45, font
        assert (drawn.distance.amax((1, 2, 3)) > 0).all()


def test_rendering_is_deterministic(masters: glyphs.Masters) -> None:
    again = glyphs.draw_masters(("DejaVuSans", "cmr10"))
    assert torch.equal(render(masters, 0), render(again, 0))
    assert not torch.equal(render(masters, 0), render(masters, 1))


def test_renderings_look_like_digits_data(masters: glyphs.Masters) -> None:
    counts = torch.cat([render(masters, seed) for seed in range(10)])
    assert counts.shape == (1040, 1, 8, 8)
    assert torch.equal(counts, counts.round())
    assert counts.min() == 0
    assert counts.max() == 16
    assert (counts.sum((1, 2, 3)) > 0).all()
    assert glyphs.to_pixels(counts).mean().abs() < 0.3


def test_shipped_config() -> None:
    config = json.loads((BACKBONE / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]
    shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64, "num_hidden_layers": 4}
    assert {name: config[name] for name in shape} == shape
    assert [config["id2label"][str(label)] for label in range(52)] == list(glyphs.ALPHABET)
    assert sum(file.stat().st_size for file in BACKBONE.iterdir()) < 1_000_000


def test_shipped_weights_read_letters_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ViTForImageClassification

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = ViTForImageClassification.from_pretrained(BACKBONE, local_files_only=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 138_868
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(pixel_values=torch.zeros(3, 1, 8, 8)).logits.shape == (3, 52)
    exact, either = glyphs.measure(model, glyphs.draw_masters(glyphs.HELD_OUT_FONTS), seed=5, examples=520)
    assert exact > 0.6
    assert either > 0.7


def test_pretraining_runs_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        glyphs.main(["--out", str(tmp_path), "--steps", "2", "--batch-size", "8", "--held-out", "16"])
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert "unseen fonts, new renderings" in capsys.readouterr().out
