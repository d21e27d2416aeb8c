"""An error of the disk is one line: which file, what happened, what to do."""

import errno
import os
from pathlib import Path

import pytest

from fedsim.disk import naming, what_to_do


@pytest.mark.parametrize(
    ("number", "goes_on", "says"),
    [
        (errno.ENOSPC, True, "there/x: No space left on device; make room on that disk, then go on with --resume auto"),
        (errno.ENOSPC, False, "there/x: No space left on device; make room on that disk"),
        (errno.EROFS, True, "give a place that may be read and written, then go on with --resume auto"),
        (errno.EACCES, False, "there/x: Permission denied; give a place that may be read and written"),
        (errno.EIO, True, "there/x: Input/output error; correct that, then go on with --resume auto; --debug shows"),
    ],
)
def test_what_helps_is_said(number: int, goes_on: bool, says: str) -> None:
    assert says in what_to_do(OSError(number, os.strerror(number), "there/x"), goes_on)


@pytest.mark.parametrize("error", [OSError("out of luck"), TimeoutError()])
def test_an_error_without_a_file_or_a_number_says_what_it_can(error: OSError) -> None:
    assert what_to_do(error, False).startswith(str(error) or "TimeoutError")


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    """`write` and `flush` know the number of a file alone."""
    path = tmp_path / "full"
    with pytest.raises(OSError, match="No space left") as caught, naming(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)


def test_a_name_that_is_there_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "another"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(OSError, match="out of luck") as bare, naming(tmp_path):
        raise OSError("out of luck")
    assert bare.value.filename is None
