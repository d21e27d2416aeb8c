"""What is kept is read again, and what is damaged, or belongs to other parts, is not."""

from pathlib import Path

import numpy as np
import pytest

from data_partitions.cache import cached_array

ARRAY = np.arange(6, dtype=np.int32).reshape(2, 3)


def never() -> np.ndarray:
    raise AssertionError("made again")


def test_an_array_is_made_once(tmp_path: Path) -> None:
    made = cached_array(tmp_path / "new", "tokens", [b"a", b"bc"], lambda: ARRAY.T)
    again = cached_array(tmp_path / "new", "tokens", [b"a", b"bc"], never)
    for array in (made, again):
        np.testing.assert_array_equal(array, ARRAY.T)
        assert array.dtype == np.int32
    (file,) = (tmp_path / "new").iterdir()
    assert file.name.startswith("tokens-")


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
    for damaged in (*flipped, whole[:-5], whole[:20], b""):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(cached_array(tmp_path, "tokens", [b"a"], lambda: ARRAY), ARRAY)
        assert file.read_bytes() == whole


def test_what_breaks_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="made again"):
        cached_array(tmp_path, "tokens", [b"a"], never)
    assert list(tmp_path.iterdir()) == []
