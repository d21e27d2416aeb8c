"""Checkpoints: tensors as safetensors, the rest as JSON, both under one checksum; nothing executes on load.

Each checkpoint is a folder of its own, `round-000010`, written under a temporary name, flushed, and renamed; the one
before stays until the new one has been read back.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim.disk import naming
from fedsim.errors import ConfigurationError

_TENSORS, _META = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What the next round depends on.

    Attributes:
        round: the last finished round.
        tensors: by name, contiguous and not overlapping.
        meta: anything JSON can hold.
    """

    round: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint beside the older ones, verifies it, and then keeps it and the one before.

    Args:
        folder: the run's checkpoint folder, made where it is missing.
        checkpoint: what to keep.

    Raises:
        OSError: the disk is full or fails; what was kept before is as it was.
        ConfigurationError: what was written does not read back.
    """
    final = folder / f"round-{checkpoint.round:06d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
    body = {"round": checkpoint.round, "meta": checkpoint.meta, "tensors_sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1)
    try:
        temporary.mkdir(parents=True)
        _write(temporary / _TENSORS, data)
        _write(temporary / _META, text.encode())
        _flush_folder(temporary)
    except OSError:  # of a full disk, where half a checkpoint would take the last room
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _flush_folder(folder)
    _read(final)
    # Whatever is newer did not verify when this run resumed, and whatever is older than the one before is not needed.
    older = sorted(path for path in folder.glob("round-*") if path.name < final.name)
    for path in {*folder.glob("round-*"), *folder.glob(".round-*.tmp")} - {final, *older[-1:]}:
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Finds the newest checkpoint that verifies.

    Args:
        folder: the run's checkpoint folder.

    Returns:
        The checkpoint, None where there is none, and a line for each damaged one that was passed over.
    """
    damaged: list[str] = []
    for path in sorted(folder.glob("round-*"), reverse=True):
        try:
            return _read(path), damaged
        except ConfigurationError as error:
            damaged.append(str(error))
    return None, damaged


def _read(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint folder."""
    try:
        body = json.loads((path / _META).read_text(encoding="utf-8"))
        data = (path / _TENSORS).read_bytes()
        stated = body.pop("sha256")
        if stated != _digest(body) or body["tensors_sha256"] != hashlib.sha256(data).hexdigest():
            raise ValueError("its checksum does not match")
        return _checked(body["round"], load(data), body["meta"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ConfigurationError(f"checkpoint {path} is damaged ({error}); it is passed over") from error


def _checked(round: object, tensors: dict[str, Tensor], meta: object) -> Checkpoint:
    if not isinstance(round, int) or isinstance(round, bool) or not 0 <= round < 2**63:
        raise ValueError("its round is no number of a round")
    if not isinstance(meta, dict):
        raise ValueError("it holds nothing beside its tensors")
    return Checkpoint(round, tensors, meta)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with naming(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
