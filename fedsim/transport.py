"""How payloads travel between workers: a broadcast down, and up the all-gather of uploads of varying size.

Only flat uint8 buffers and their sizes travel; nothing is pickled. With one worker nothing travels at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from fedsim.errors import WorkerLost
from fedsim.schedule import Wave

PIECE_BYTES = 256 * 2**20
"""The largest buffer that one collective fills, over all workers."""


class Workers:
    """The processes of a run, as the round sees them.

    Args:
        rank: this process, 0 being the server worker, which trains clients too.
        count: how many there are; above 1, torch.distributed must be initialised.
        device: where this worker trains, and where buffers must be for its process group.
        piece_bytes: the largest buffer that one collective fills.
    """

    def __init__(self, rank: int, count: int, device: torch.device, piece_bytes: int = PIECE_BYTES) -> None:
        self.rank = rank
        self.count = count
        self.device = device
        self._limit = piece_bytes
        self._piece = max(1, piece_bytes // count)

    @property
    def is_server(self) -> bool:
        """Whether this process holds the server's state."""
        return self.rank == 0

    def broadcast(self, payloads: Sequence[bytes] | None) -> list[bytes]:
        """Sends the server worker's payloads to every worker.

        Args:
            payloads: any number of payloads on the server worker, None on the others.

        Returns:
            The payloads, on every worker.
        """
        if self.count == 1:
            return list(payloads or [])
        number = self._from_server(torch.tensor([len(payloads or [])]))
        sizes = self._from_server(torch.tensor([len(p) for p in payloads] if payloads else [0] * int(number)))
        flat = _to_tensor(b"".join(payloads)) if payloads else torch.empty(int(sizes.sum()), dtype=torch.uint8)
        flat = torch.cat([self._from_server(piece) for piece in flat.split(self._piece)] or [flat])
        return [part.numpy().tobytes() for part in flat.split(sizes.tolist())]

    def tell(self, facts: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Tells every worker what the server worker knows; outside the ledger, as nothing of it crosses a network.

        Args:
            facts: anything that JSON can hold, on the server worker; others' are not read.
            tensors: likewise, by name.

        Returns:
            Both, on every worker; tensors on its device.
        """
        if self.count == 1:
            return facts, tensors
        (packed,) = self.broadcast([pack(facts, tensors)] if self.is_server else None)
        return (facts, tensors) if self.is_server else unpack(packed, self.device)

    def gather(self, payloads: Mapping[int, bytes], wave: Wave) -> Iterator[tuple[int, bytes]]:
        """Brings every worker's payloads to the server worker: sizes first, then padded buffers in bounded pieces.

        Every worker must run the iterator to its end. Payloads come in groups of neighbours in the cohort of at most
        `piece_bytes`, or of one that is larger; the server worker holds one group at a time, the others their own part.

        Args:
            payloads: this worker's payloads by position in the cohort; a position may be missing.
            wave: whose they are.

        Yields:
            (position, payload) of the whole wave in order on the server worker, an empty one where it is missing;
            nothing on the others.
        """
        if self.count == 1:
            yield from ((position, payloads.get(position, b"")) for position in wave.positions)
            return
        counted = self.sum(torch.tensor([len(payloads.get(p, b"")) for p in wave.positions])).tolist()
        sizes = dict(zip(wave.positions, counted, strict=True))
        for group in _groups(sizes, self._limit):
            parts: list[list[int]] = [[p for p in group if wave.owner(p) == worker] for worker in range(self.count)]
            mine = b"".join(payloads.get(p, b"") for p in parts[self.rank])
            arrived = self._all_gather(mine, [sum(sizes[p] for p in part) for part in parts])
            found: dict[int, Tensor] = {}
            for row, part in zip(arrived, parts, strict=False):  # no rows but on the server worker
                found.update(zip(part, row.split([sizes[p] for p in part]), strict=True))
            yield from ((p, found[p].numpy().tobytes()) for p in group if found)

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds a tensor over the workers. Exact, whatever their number, where at most one of them is not zero."""
        if self.count == 1:
            return tensor
        moved = tensor.to(self.device, copy=True)
        with _collective():
            dist.all_reduce(moved)
        return moved.to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether any worker says so. Every worker must call it, and all hear the same."""
        return bool(self.sum(torch.tensor([int(flag)])))

    def _from_server(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self.device)
        with _collective():
            dist.broadcast(moved, src=0)
        return moved.cpu()

    def _all_gather(self, mine: bytes, lengths: Sequence[int]) -> list[Tensor]:
        """Gathers a buffer of each worker, padded to the longest, piece by piece; only the server worker keeps them."""
        flat = torch.zeros(max(lengths), dtype=torch.uint8)
        flat[: len(mine)] = _to_tensor(mine)
        kept: list[list[Tensor]] = [[flat[:0]] for _ in lengths]
        for number, piece in enumerate(flat.split(self._piece) if len(flat) else ()):
            rows = torch.empty(self.count * len(piece), dtype=torch.uint8, device=self.device)
            # torch 2.13 renamed it; the older name warns there.
            all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            with _collective():
                all_gather(rows, piece.to(self.device))
            if self.is_server:
                for own, row, length in zip(kept, rows.view(self.count, -1), lengths, strict=True):
                    own.append(row[: max(0, length - number * self._piece)].cpu())
        return [torch.cat(own) for own in kept] if self.is_server else []


def pack(facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Writes what JSON can hold, and tensors by name, as bytes; nothing is pickled."""
    text = json.dumps(facts).encode()
    # Copies, as safetensors refuses tensors that share memory.
    return (
        len(text).to_bytes(8, "little")
        + text
        + save({n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()})
    )


def unpack(packed: bytes, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what `pack` wrote; tensors come to a device."""
    end = 8 + int.from_bytes(packed[:8], "little")
    tensors = {name: tensor.to(device) for name, tensor in load(packed[end:]).items()}
    return json.loads(packed[8:end]), tensors


@contextmanager
def _collective() -> Iterator[None]:
    """Says in a line what the process group says of a worker that is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise WorkerLost(f"another worker stopped, so this one cannot go on ({reason})") from error


def _to_tensor(payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)


def _groups(sizes: Mapping[int, int], limit: int) -> Iterator[list[int]]:
    """Cuts positions into runs of neighbours of at most `limit` bytes, or of one payload that is larger."""
    group: list[int] = []
    held = 0
    for position, size in sizes.items():
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(position)
        held += size
    if group:
        yield group
