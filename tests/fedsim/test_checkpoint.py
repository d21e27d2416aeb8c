import errno
import json
import math
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import checkpoint as checkpoints
from fedsim.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint

TENSORS = {
    "vector": torch.linspace(-1, 1, 50),
    "optimizer.step": torch.tensor(3.0),
    "optimizer.exp_avg": torch.linspace(0, 1e-40, 50, dtype=torch.float64),
    "method.mask": torch.tensor([2, 5, 9]),
    "method.half": torch.ones(3, dtype=torch.bfloat16),
    "method.empty": torch.zeros(0),
}
FILES = ("state.safetensors", "state.json")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def save(folder: Path, *rounds: int) -> None:
    for round in rounds:
        tensors = {**TENSORS, "vector": TENSORS["vector"] + round}
        save_checkpoint(folder, Checkpoint(round, tensors, {"history": {"rows": [{"round": round, "loss": 0.1}]}}))


def newest(folder: Path) -> Checkpoint:
    found, _ = newest_checkpoint(folder)
    assert found is not None
    return found


def test_what_comes_back_is_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None
    assert damaged == []
    assert found.round == 7
    assert found.meta == {"history": {"rows": [{"round": 7, "loss": 0.1}]}}
    assert found.tensors.keys() == TENSORS.keys()
    assert torch.equal(found.tensors["vector"], TENSORS["vector"] + 7)
    for name in TENSORS.keys() - {"vector"}:
        assert found.tensors[name].dtype == TENSORS[name].dtype
        assert torch.equal(found.tensors[name], TENSORS[name])


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_meta_comes_back(tmp_path_factory: pytest.TempPathFactory, meta: dict[str, Any]) -> None:
    """To the last bit of a float: the checksum is over what was read back."""
    folder = tmp_path_factory.mktemp("meta")
    save_checkpoint(folder, Checkpoint(1, {}, meta))
    assert newest(folder).meta == meta


def test_values_that_are_not_finite_come_back(tmp_path: Path) -> None:
    """A loss that diverged stands in the history; it must not make the checkpoint unreadable."""
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324]
    save_checkpoint(tmp_path, Checkpoint(1, {"vector": torch.tensor(values)}, {"loss": values}))
    found = newest(tmp_path)
    assert repr(found.meta["loss"]) == repr(values)
    assert repr(found.tensors["vector"].tolist()) == repr(torch.tensor(values).tolist())


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "missing") == (None, [])


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 5, 9, 10, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000010", "round-000100"]
    assert newest(tmp_path).round == 100


def test_a_round_that_is_run_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    save_checkpoint(tmp_path, Checkpoint(2, {}, {"again": True}))
    assert newest(tmp_path).meta == {"again": True}


def flip(path: Path, position: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bits
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_passed_over_for_the_older_one(name: str, tmp_path: Path) -> None:
    """In every region of either file: a header, a name, a digest, a value, the last byte.

    Bit 0 of a byte of the JSON's own white space makes it no white space; so no flip here can go unnoticed.
    """
    save(tmp_path, 1, 2)
    path = tmp_path / "round-000002" / name
    whole = path.read_bytes()
    step = max(1, len(whole) // 150)
    for position in sorted({*range(0, len(whole), step), 0, 7, 8, 9, len(whole) - 1}):
        flip(path, position)
        found, damaged = newest_checkpoint(tmp_path)
        assert found is not None
        assert found.round == 1, f"byte {position} ({whole[position : position + 1]!r}) went unnoticed"
        assert len(damaged) == 1
        assert "round-000002 is damaged" in damaged[0]
        assert "\n" not in damaged[0]
        path.write_bytes(whole)
    assert newest(tmp_path).round == 2


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_missing_file_is_passed_over(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "round-000002" / name
    whole = path.read_bytes()
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        found, damaged = newest_checkpoint(tmp_path)
        assert found is not None
        assert (found.round, len(damaged)) == (1, 1)
    path.unlink()
    assert newest(tmp_path).round == 1


@pytest.mark.parametrize("text", ["[]", "7", "null", "{}", '{"sha256": 1}', '"sha256"'])
def test_json_of_another_kind_is_passed_over(text: str, tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "round-000002" / "state.json").write_text(text)
    assert newest(tmp_path).round == 1


def test_files_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    """Each file is whole, and they do not belong together."""
    save(tmp_path, 1, 2)
    shutil.copy(tmp_path / "round-000001" / "state.safetensors", tmp_path / "round-000002" / "state.safetensors")
    assert newest(tmp_path).round == 1


def test_all_damaged_is_none_with_a_note_each(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in tmp_path.glob("*/state.json"):
        path.write_text("")
    found, damaged = newest_checkpoint(tmp_path)
    assert found is None
    assert ["round-000002" in damaged[0], "round-000001" in damaged[1]] == [True, True]


def test_a_kill_before_the_rename_leaves_the_older_one(tmp_path: Path) -> None:
    """The half-written folder stays under its temporary name; the next checkpoint of that round clears it away."""
    save(tmp_path, 1)
    left = tmp_path / ".round-000002.tmp"
    shutil.copytree(tmp_path / "round-000001", left)
    (left / "half").write_text("")
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.round, damaged) == (1, [])
    save(tmp_path, 2)
    assert not left.exists()
    assert sorted(path.name for path in (tmp_path / "round-000002").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("older", [(), (70, 80)], ids=["starts anew", "goes on at an older one"])
def test_a_restart_past_damaged_checkpoints_leaves_none_of_them(older: tuple[int, ...], tmp_path: Path) -> None:
    """They are newer by name than what the restart saves, and must neither hide it nor push it out."""
    save(tmp_path, *older[:1])
    # As a run leaves them that was killed while it kept round 90 and wrote round 110.
    for round in (*older[1:], 90, 100):
        save(tmp_path / "elsewhere", round)
        (tmp_path / "elsewhere" / f"round-{round:06d}").rename(tmp_path / f"round-{round:06d}")
    shutil.rmtree(tmp_path / "elsewhere")
    for round in (90, 100):
        flip(tmp_path / f"round-{round:06d}" / "state.safetensors", -1)
    (tmp_path / ".round-000110.tmp").mkdir()
    (tmp_path / ".round-000110.tmp" / "state.json").write_text("{")
    found, damaged = newest_checkpoint(tmp_path)
    assert (found.round if found else 0, len(damaged)) == (max(older, default=0), 2)
    first, second = max(older, default=0) + 10, max(older, default=0) + 20
    save(tmp_path, first)
    assert newest(tmp_path).round == first
    save(tmp_path, second)
    assert newest_checkpoint(tmp_path)[1] == []
    assert newest(tmp_path).round == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"round-{first:06d}", f"round-{second:06d}"]


def test_the_older_one_stays_until_the_new_one_was_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks lie: what was written damaged must not cost the checkpoint before it."""
    save(tmp_path, 1, 2)
    write = checkpoints._write

    def corrupting(path: Path, data: bytes) -> None:
        write(path, data)
        flip(path, len(data) // 2)

    monkeypatch.setattr(checkpoints, "_write", corrupting)
    with pytest.raises(checkpoints.ConfigurationError, match="damaged"):
        save(tmp_path, 3)
    assert newest(tmp_path).round == 2


@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_leaves_the_checkpoints_before_and_nothing_else(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a checkpoint would take the room that is needed to go on."""
    save(tmp_path, 1, 2)
    write = checkpoints._write

    def full(path: Path, data: bytes) -> None:
        write(path, data[: len(data) // 2] if path.name == file else data)
        if path.name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000001", "round-000002"]
    assert newest(tmp_path).round == 2


@pytest.mark.parametrize(
    "change",
    [{"round": -1}, {"round": True}, {"round": 1.5}, {"round": math.inf}, {"round": "2"}, {"meta": []}, {"meta": None}],
    ids=str,
)
def test_content_that_no_run_leaves_is_passed_over_though_its_checksum_fits(
    change: dict[str, Any], tmp_path: Path
) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "round-000002" / "state.json"
    body = {**json.loads(path.read_text()), **change}
    del body["sha256"]
    path.write_text(json.dumps({**body, "sha256": checkpoints._digest(body)}))
    assert newest(tmp_path).round == 1


def test_json_that_is_nested_too_deep_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "round-000002" / "state.json").write_text("[" * 100_000)
    assert newest(tmp_path).round == 1


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files, then the folder that names them; after the rename, the folder that holds it."""
    events: list[str] = []
    sync, rename = os.fsync, Path.rename

    def flush(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", lambda path, to: (events.append("rename"), rename(path, to))[1])
    save(tmp_path, 1)
    assert events == ["file", "file", "folder", "rename", "folder"]


def test_views_and_parameters_are_saved_as_plain_tensors(tmp_path: Path) -> None:
    """Slices, transposes and parameters: safetensors alone would refuse them."""
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"column": whole[:, 1], "turned": whole.clone().t(), "parameter": torch.nn.Parameter(whole.clone())}
    save_checkpoint(tmp_path, Checkpoint(1, tensors, {}))
    found = newest(tmp_path).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert not found["parameter"].requires_grad


def test_the_meta_file_is_readable_json(tmp_path: Path) -> None:
    save(tmp_path, 4)
    body = json.loads((tmp_path / "round-000004" / "state.json").read_text())
    assert body["round"] == 4
