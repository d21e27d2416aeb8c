"""What is kept is mapped, what is damaged or belongs to other parts is made again, what is large is made in pieces."""

import mmap
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from data_partitions.errors import DataError
from data_partitions.reading import cache as module
from data_partitions.reading.cache import cached_array, cached_rows

ARRAY = np.arange(6, dtype=np.int32).reshape(2, 3)
ROWS = np.arange(70, dtype=np.uint16).reshape(7, 2, 5)


def never(*_: object) -> np.ndarray:
    raise AssertionError("made again")


def fill(first: int, rows: np.ndarray) -> None:
    rows[:] = ROWS[first : first + len(rows)]


def rows_of(folder: Path, fill=fill, parts=(b"a",)) -> np.ndarray:
    return cached_rows(folder, "rows", parts, ROWS.shape, "uint16", fill)


def written(folder: Path) -> Path:
    """The one array that a folder holds."""
    (file,) = folder.glob("[!.]*")
    return file


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of the seven rows, which have 20 bytes each."""
    monkeypatch.setattr(module, "PIECE_BYTES", 70)


def test_an_array_is_made_once(tmp_path: Path) -> None:
    made = cached_array(tmp_path / "new", "tokens", [b"a", b"bc"], lambda: ARRAY.T)
    again = cached_array(tmp_path / "new", "tokens", [b"a", b"bc"], never)
    for array in (made, again):
        np.testing.assert_array_equal(array, ARRAY.T)
        assert array.dtype == np.int32
    (file,) = (tmp_path / "new").iterdir()
    assert file.name.startswith("tokens-")
    np.testing.assert_array_equal(np.load(file), ARRAY.T)  # a .npy file like any other, with something behind it


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.int8), np.array(["a", "bcd"]), np.array([True]), np.ones(())])
def test_shapes_and_dtypes(tmp_path: Path, array: np.ndarray) -> None:
    made = cached_array(tmp_path, "array", [], lambda: array)
    again = cached_array(tmp_path, "array", [], never)
    assert (again.shape, again.dtype) == (made.shape, array.dtype)
    np.testing.assert_array_equal(again, made)


def test_a_second_start_maps_the_file_and_never_writes_to_it(tmp_path: Path) -> None:
    cached_array(tmp_path, "tokens", [b"a"], lambda: ARRAY)
    file = written(tmp_path)
    content = file.read_bytes()
    mapped = cached_array(tmp_path, "tokens", [b"a"], never)
    assert isinstance(mapped.base, mmap.mmap)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of an array that it may not write to
        tensor = torch.from_numpy(mapped)
    tensor += 1
    np.testing.assert_array_equal(mapped, ARRAY + 1)
    assert file.read_bytes() == content
    np.testing.assert_array_equal(cached_array(tmp_path, "tokens", [b"a"], never), ARRAY)


def test_a_map_may_be_larger_than_memory(tmp_path: Path) -> None:
    """Linux refuses a private mapping of more than there is, unless told that it will hardly be written to."""
    file = tmp_path / "large.npy"
    size = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total)
    with file.open("wb") as target:
        described = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(target, described)
        target.truncate(target.tell() + size)  # a file of holes
    with file.open("rb") as source:
        mapped = module._map(source)
    assert mapped.shape == (size,)
    assert mapped[-1] == 0


@pytest.mark.parametrize("parts", [[b"ab", b"c"], [b"a", b"bc", None], [b"bc", b"a"], [b"a", b"bd"]])
def test_other_parts_are_another_array(tmp_path: Path, parts: list[bytes | None]) -> None:
    cached_array(tmp_path, "tokens", [b"a", b"bc"], lambda: ARRAY)
    np.testing.assert_array_equal(cached_array(tmp_path, "tokens", parts, lambda: -ARRAY), -ARRAY)


def test_a_flipped_bit_and_a_cut_file_are_made_again(tmp_path: Path) -> None:
    """In the header too: there it could be read as another type."""
    cached_array(tmp_path, "tokens", [b"a"], lambda: ARRAY)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
    for damaged in (*flipped, whole[:-5], whole[:20], whole + b"0", b""):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(cached_array(tmp_path, "tokens", [b"a"], lambda: ARRAY), ARRAY)
        assert file.read_bytes() == whole


def test_a_checksum_over_many_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_array(tmp_path, "tokens", [b"a"], lambda: ARRAY)
    for size in (1, 7, 152):  # the file has 128 bytes of header and 24 of array
        monkeypatch.setattr(module, "BUFFER_BYTES", size)
        np.testing.assert_array_equal(cached_array(tmp_path, "tokens", [b"a"], never), ARRAY)


def test_what_breaks_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="made again"):
        cached_array(tmp_path, "tokens", [b"a"], never)
    assert list(tmp_path.iterdir()) == []


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be kept in a file"):
        cached_array(tmp_path, "tokens", [b"a"], lambda: np.array([{}]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_pieces")
def test_rows_are_made_once_and_in_pieces(tmp_path: Path) -> None:
    asked = []

    def noted(first: int, rows: np.ndarray) -> None:
        asked.append((first, rows.shape))
        fill(first, rows)

    made, again = rows_of(tmp_path / "new", noted), rows_of(tmp_path / "new", never)
    assert asked == [(0, (3, 2, 5)), (3, (3, 2, 5)), (6, (1, 2, 5))]
    for array in (made, again):
        np.testing.assert_array_equal(array, ROWS)
        assert array.dtype == np.uint16
        assert isinstance(array.base, mmap.mmap)
    file = written(tmp_path / "new")
    assert file.name.startswith("rows-")
    whole = file.read_bytes()
    file.write_bytes(whole[:150] + bytes([whole[150] ^ 1]) + whole[151:])
    np.testing.assert_array_equal(rows_of(tmp_path / "new"), ROWS)
    assert file.read_bytes() == whole


def test_rows_are_named_by_parts_shape_and_dtype(tmp_path: Path) -> None:
    rows_of(tmp_path)
    for parts, shape, dtype in [((b"b",), ROWS.shape, "uint16"), ((b"a",), (7, 10), "uint16"), ((b"a",), (7,), "int8")]:
        with pytest.raises(AssertionError, match="made again"):
            cached_rows(tmp_path, "rows", parts, shape, dtype, never)


@pytest.mark.usefixtures("small_pieces")
def test_rows_that_break_leave_no_array(tmp_path: Path) -> None:
    def breaks(first: int, rows: np.ndarray) -> None:
        if first:
            raise DataError("row 3 is broken")
        fill(first, rows)

    with pytest.raises(DataError, match="row 3 is broken"):
        rows_of(tmp_path, breaks)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 0  # the lock
    np.testing.assert_array_equal(rows_of(tmp_path), ROWS)


@pytest.mark.usefixtures("small_pieces")
def test_a_kill_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    rows_of(tmp_path)
    file = written(tmp_path)
    whole = file.read_bytes()
    file.unlink()
    code = (
        "import os, sys, numpy as np\n"
        "from data_partitions.reading import cache\n"
        "cache.PIECE_BYTES = 70\n"
        "def fill(first, rows):\n"
        "    rows[:] = 9\n"
        "    if first == 6:\n"
        "        os._exit(9)\n"
        f"cache.cached_rows(sys.argv[1], 'rows', [b'a'], {ROWS.shape}, 'uint16', fill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[3])
    assert killed.returncode == 9
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".unfinished")]
    np.testing.assert_array_equal(rows_of(tmp_path), ROWS)
    assert written(tmp_path).read_bytes() == whole
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".unfinished")]


def test_one_worker_makes_rows_and_the_others_wait(tmp_path: Path) -> None:
    made = []

    def slowly(first: int, rows: np.ndarray) -> None:
        made.append(first)
        time.sleep(0.1)
        fill(first, rows)

    found: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: found.append(rows_of(tmp_path, slowly))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made == [0]
    assert len(found) == 3
    assert all((array == ROWS).all() for array in found)


@pytest.mark.usefixtures("small_pieces")
def test_rows_without_a_folder_are_made_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    array = rows_of(tmp_path / "file")
    np.testing.assert_array_equal(array, ROWS)
    assert array.base is None
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=ROWS.nbytes - 1))
    np.testing.assert_array_equal(rows_of(tmp_path / "full"), ROWS)
    assert not list((tmp_path / "full").glob("[!.]*"))


def test_rows_that_fit_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"cannot be written \(File exists\), and its 1000000000.0 GB do not fit"
    ) as caught:
        cached_rows(tmp_path / "file", "rows", [], (10**9, 10**9), "uint8", never)
    assert "\n" not in str(caught.value)
