"""Every client sees its images in its own way: what is altered, by how much, and what never is."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_partitions.errors import DataError
from data_partitions.partition import Partition
from data_partitions.partitioners import feature_skew
from data_partitions.partitioners.feature_skew import FeatureSkew, rotate
from data_partitions.partitioners.iid import IID
from data_partitions.partitioners.natural import Natural
from launch.__main__ import main
from tests import tiny

kinds = st.sampled_from(["noise", "rotation"])
SHORT = "--rounds 2 --cohort_size 3 --partition.clients 8 --evaluate_every_rounds 2 --server.lr 0.02"


def deal(rule: FeatureSkew, examples: int) -> Partition:
    return rule.split(np.zeros(examples, dtype=np.int64), None, np.random.default_rng(0))


def alter(rule: FeatureSkew, pixels: Tensor, partition: Partition, seed: int = 0) -> Tensor:
    columns = {"pixel_values": pixels, "labels": torch.arange(len(pixels))}
    altered = rule.alter(columns, partition, np.random.default_rng(seed))
    assert list(altered) == list(columns)
    assert altered["labels"] is columns["labels"]
    return altered["pixel_values"]


def images(examples: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.randint(256, (examples, *(shape or (1, 5, 4))), generator=torch.Generator().manual_seed(1))
    return random.to(dtype) if dtype == torch.uint8 else (random / 255).to(dtype)


@given(
    kinds,
    st.floats(0.05, 1),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**32),
    st.integers(1, 100),
)
@settings(deadline=None, max_examples=30)
def test_what_every_alteration_promises(
    kind: Any, strength: float, clients: int, examples: int, dtype: torch.dtype, seed: int, piece: int
) -> None:
    """Shape and dtype stay, the data set's own images too; the same again for the same seed, however it is cut up."""
    rule = FeatureSkew(clients, kind, strength * (180 if kind == "rotation" else 1))
    pixels, partition = images(examples, dtype=dtype), deal(rule, examples)
    before = pixels.clone()
    altered = alter(rule, pixels, partition, seed)
    assert (altered.shape, altered.dtype) == (pixels.shape, pixels.dtype)
    assert torch.equal(pixels, before)
    assert altered.isfinite().all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_skew, "PIECE_VALUES", piece)
        assert torch.equal(alter(rule, pixels, partition, seed), altered)
    assert partition.digest() == IID(clients).split(np.zeros(examples), None, np.random.default_rng(0)).digest()


def test_noise_rises_with_the_client() -> None:
    """4 clients at strength 0.4: deviations 0.1, 0.2, 0.3 and 0.4, of mean zero."""
    rule, pixels = FeatureSkew(4, "noise", 0.4), torch.zeros(400, 3, 8, 8)
    partition = deal(rule, 400)
    altered = alter(rule, pixels, partition)
    own = [altered[partition.of(client)] for client in range(4)]
    assert rule.levels() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [noise.std().item() for noise in own] == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=0.02)
    assert [noise.mean().item() for noise in own] == pytest.approx([0] * 4, abs=0.01)
    assert not torch.equal(altered, alter(rule, pixels, partition, seed=1))


def test_noise_on_bytes_is_in_bytes_rounded_and_clipped() -> None:
    """Deviation 0.1 of the range is 25.5; at the range's ends half of the noise is cut off, and none wraps round."""
    rule = FeatureSkew(1, "noise", 0.1)
    grey, black, white = (torch.full((50, 3, 8, 8), value, dtype=torch.uint8) for value in (127, 0, 255))
    partition = deal(rule, 50)
    assert alter(rule, grey, partition).double().std().item() == pytest.approx(25.5, rel=0.03)
    assert alter(rule, grey, partition).double().mean().item() == pytest.approx(127, abs=1)
    dark, bright = alter(rule, black, partition), alter(rule, white, partition)
    assert (dark == 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (bright == 255).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert dark.max() < 140
    assert bright.min() > 115
    lifted = alter(rule, torch.full_like(black, 100) / 255, partition)  # the same noise on floats, in their own unit
    rounded = alter(rule, torch.full_like(black, 100), partition)
    assert torch.allclose((lifted * 255).round().clamp(0, 255), rounded.float(), atol=1)


def test_angles_are_spread_evenly_and_a_single_client_is_not_turned() -> None:
    assert FeatureSkew(5, "rotation", 60).levels().tolist() == [-60, -30, 0, 30, 60]
    assert FeatureSkew(2, "rotation").levels().tolist() == [-45, 45]
    assert FeatureSkew(1, "rotation").levels().tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_quarter_turn_by_hand(dtype: torch.dtype) -> None:
    """Three clients at 90 degrees: clockwise, as it was, and counter-clockwise."""
    picture = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=dtype)
    rule, partition = FeatureSkew(3, "rotation", 90), Partition(np.arange(4), np.array([2, 0, 1]))
    second, third, first = alter(rule, picture.expand(3, 1, 3, 3), partition)[:, 0]
    assert first.tolist() == pytest.approx(np.array([[7, 4, 1], [8, 5, 2], [9, 6, 3]]), abs=1e-5)
    assert torch.equal(second, picture)
    assert third.tolist() == pytest.approx(np.array([[3, 6, 9], [2, 5, 8], [1, 4, 7]]), abs=1e-5)


def test_half_a_turn_and_back_and_no_stretching() -> None:
    """180 degrees is the reverse whatever the sides; in a wide image a quarter turn brings a column into a row."""
    wide = images(2, 3, 4, 10).double()
    turned = rotate(wide, torch.full((2,), 180.0, dtype=torch.float64))
    assert torch.allclose(turned, wide.flip(-1, -2), atol=1e-9)
    quarter = rotate(wide, torch.full((2,), 90.0, dtype=torch.float64))
    assert torch.allclose(quarter[..., 3:7], torch.rot90(wide[..., 3:7], dims=(-2, -1)), atol=1e-9)
    assert torch.allclose(quarter[..., :3], torch.rot90(wide[..., 3:7], dims=(-2, -1))[..., :1], atol=1)


def test_outside_of_an_image_its_edge_goes_on() -> None:
    plain = torch.full((4, 1, 6, 6), 0.7)
    assert torch.allclose(rotate(plain, torch.tensor([10.0, 33.0, 45.0, 170.0])), plain)


@pytest.mark.parametrize("kind", ["noise", "rotation"])
def test_strength_0_and_images_that_nobody_holds_change_nothing(kind: Any) -> None:
    pixels = images(6)
    nothing = FeatureSkew(3, kind, 0)
    assert alter(nothing, pixels, deal(nothing, 6)) is pixels
    rule, partition = FeatureSkew(2, kind), Partition(np.array([0, 2, 3]), np.array([5, 1, 2]))
    changed = (alter(rule, pixels, partition) != pixels).flatten(1).any(1)
    assert changed.tolist() == [False, True, True, False, False, True]


def test_by_default_clients_see_what_the_data_hold() -> None:
    columns = {"input_ids": torch.zeros(3, 2)}
    partition = Partition(np.array([0, 3]), np.arange(3))
    assert Natural().alter(columns, partition, np.random.default_rng(0)) is columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "blur"}, "kind is 'blur', expected noise or rotation"),
        ({"strength": -0.1}, r"strength is -0\.1, expected a finite number of at least 0: give e\.g\. 0\.1"),
        ({"strength": float("nan")}, "strength is nan, expected a finite number"),
        ({"strength": True}, "strength is True, expected a finite number"),
        ({"strength": "much"}, "strength is 'much', expected a finite number"),
        ({"kind": "rotation", "strength": 181}, r"strength is 181, expected a number of degrees .* give e\.g\. 45"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureSkew(**arguments)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": torch.zeros(4, 2), "labels": torch.zeros(4)}, "columns input_ids, labels, expected images"),
        ({"pixel_values": torch.zeros(4, 2)}, r"pixel_values torch\.float32 \(4, 2\), expected bytes or floats"),
        ({"pixel_values": torch.zeros(4, 1, 2, 2, dtype=torch.int64)}, r"torch\.int64 .* expected bytes or floats"),
    ],
)
def test_refuses_data_without_images(columns: dict[str, Tensor], message: str) -> None:
    rule = FeatureSkew(2)
    with pytest.raises(DataError, match=message):
        rule.alter(columns, deal(rule, 4), np.random.default_rng(0))


def run(folder: Path, *options: str) -> list[float]:
    assert main(["run", *SHORT.split(), *options, "--run_dir", str(folder)]) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_run_trains_on_altered_images_and_is_measured_on_the_data_sets_own(tmp_path: Path) -> None:
    """Both runs deal alike and start from the same loss; then they part, and both learn."""
    plain = run(tmp_path / "plain", "--partition", "IID")
    noisy = run(tmp_path / "noisy", "--partition", "FeatureSkew")
    assert plain[0] == noisy[0]
    assert plain[1:] != noisy[1:]
    assert max(plain[-1], noisy[-1]) < plain[0] - 0.01
    dealt, dealt_alike = (Partition.load(tmp_path / name / "partition.npz") for name in ("plain", "noisy"))
    assert dealt.digest() == dealt_alike.digest()
    assert dealt_alike.arguments == {"partitioner": "FeatureSkew", "clients": 8, "kind": "noise", "strength": 0.1}


def test_texts_are_refused_in_a_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_partitions.datasets.digits.Digits.load", lambda _: tiny.texts())
    assert main(["run", "--partition", "FeatureSkew", "--run_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fedsim: FeatureSkew was given data with columns input_ids")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
