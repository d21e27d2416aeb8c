"""What a partition is on disk: whole, checked, or refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_partitions.errors import DataError
from data_partitions.partition import Partition
from data_partitions.partitioners.dirichlet import Dirichlet


def test_saves_and_loads(tmp_path: Path) -> None:
    partition = Dirichlet(7, 0.1).split(np.arange(60) % 3, None, np.random.default_rng(1))
    path = tmp_path / "partition.npz"
    path.write_bytes(b"an older file")
    partition.save(path)
    loaded = Partition.load(str(path))
    np.testing.assert_array_equal(loaded.offsets, partition.offsets)
    np.testing.assert_array_equal(loaded.indices, partition.indices)
    assert loaded.arguments == {"partitioner": "Dirichlet", "clients": 7, "alpha": 0.1}
    assert loaded.digest() == partition.digest()
    assert [file.name for file in tmp_path.iterdir()] == ["partition.npz"]


def test_a_failed_save_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    path.write_bytes(b"an older file")
    unwritable = Partition(np.array([0, 1]), np.array([0]), {"generator": object()})
    with pytest.raises(TypeError):
        unwritable.save(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an older file"]


GOOD = {"offsets": np.array([0, 2, 3]), "indices": np.array([2, 0, 1]), "arguments": np.array("{}")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 3, 2])}, "expected at least two from 0 to 3"),
        ({"offsets": np.array([0, 5, 3])}, "falls after client 1"),
        ({"offsets": np.array([1, 2, 3])}, "from 1 to 3"),
        ({"offsets": np.array([], dtype=np.int64)}, "0 entries"),
        ({"offsets": np.array([0.0, 3.0])}, "expected int64"),
        ({"indices": np.array([[2, 0, 1]])}, "expected int64 in one dimension"),
        ({"indices": np.array([2, 0, 2])}, "holds 2 twice"),
        ({"indices": np.array([2, 0, -1])}, "holds -1"),
        ({"indices": np.array([2, 0, {}], dtype=object)}, "allow_pickle=False"),
        ({"arguments": np.array("{")}, "no partition"),
        ({"arguments": np.array("[]")}, "JSON list"),
        ({"indices": None}, "indices is not a file"),
    ],
)
def test_refuses_a_malformed_file(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "partition.npz"
    np.savez(path, **{name: array for name, array in {**GOOD, **change}.items() if array is not None})
    with pytest.raises(DataError, match=message) as caught:
        Partition.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_arrays_that_are_not_in_the_file(tmp_path: Path) -> None:
    """Numpy makes room for what a header claims before it reads: 8 TB for some hundred bytes."""
    path = tmp_path / "partition.npz"
    np.savez_compressed(path, **GOOD)
    with pytest.raises(DataError, match="is compressed"):
        Partition.load(path)
    for shape in ((10**12,), (-1,)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in GOOD.items():
                member = io.BytesIO()
                np.save(member, array)
                archive.writestr(f"{name}.npy", header.getvalue() if name == "indices" else member.getvalue())
        with pytest.raises(DataError, match=r"indices\.npy claims"):
            Partition.load(path)


NO_CHARACTER = np.array([0x7B, 0x22, 0x110000, 0x22, 0x3A, 0x31, 0x7D], dtype="<u4").view("<U7")[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, '{"a": "\\ud800"}', np.array(NO_CHARACTER)])
def test_refuses_arguments_that_json_or_a_terminal_cannot_hold(text: object, tmp_path: Path) -> None:
    np.savez(tmp_path / "partition.npz", **{**GOOD, "arguments": np.array(text)})
    with pytest.raises(DataError, match="is no partition"):
        Partition.load(tmp_path / "partition.npz")


def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    with pytest.raises(DataError, match="No such file"):
        Partition.load(path)
    np.savez(path, **GOOD)
    whole = path.read_bytes()
    with path.open("wb") as file:
        np.save(file, GOOD["indices"])
    single = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(GOOD["indices"].tobytes())] ^= 1
    for content in (b"", b"nonsense", whole[: len(whole) // 2], single, bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no partition"):
            Partition.load(path)
