"""How a round spreads over many workers: who waits for whom, and what the collectives bring to each of them.

Nobody trains here. The schedule is the engine's own, over clients of a partition; the uploads are payloads of a real
length, gathered by the engine's own `Workers.gather` in as many processes as there are workers, on this one machine. So
the bytes are those of any machine, and the seconds are this machine's alone.
"""

import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_partitions.partition import Partitioner
from data_partitions.partitioners.dirichlet import Dirichlet
from data_partitions.partitioners.quantity_skew import QuantitySkew
from fedsim.codec import encode
from fedsim.sampling import local_steps, sample_cohort
from fedsim.schedule import Wave, assign
from fedsim.seeding import Purpose, generator
from fedsim.sparse import SparseVector, kept_entries, topk_indices
from fedsim.transport import Workers

CLIENTS, EXAMPLES, BATCH, ROUNDS = 10_000, 1_000_000, 16, 20
"""The population, its examples, of ten labels; the batch size that makes steps of them; how many rounds are drawn."""

COHORTS = (64, 256, 1024)
"""Clients a round."""

ADAPTER, DENSITY = 12_938, 1 / 4
"""Values of P, and the density of an upload: those of handwritten digits."""

PIECE_BYTES = 2**24
"""Of a collective here, as all workers share one machine's memory."""


@dataclass(frozen=True)
class Scaling:
    """One cohort on some workers.

    Attributes:
        workers: how many.
        cohort_size: clients a round.
        even_imbalance: the steps of the longest worker over the mean, clients by Dirichlet 0.1; the mean over rounds.
        skewed_imbalance: likewise, clients of very unequal sizes (QuantitySkew 0.5).
        upload_bytes: of all clients of a round.
        carried_bytes: what the gather brought to each worker, padding included.
        seconds: of the gather, here.
    """

    workers: int
    cohort_size: int
    even_imbalance: float
    skewed_imbalance: float
    upload_bytes: int
    carried_bytes: int
    seconds: float


def scaling_rows(workers: int, cohorts: Sequence[int]) -> list[Scaling]:
    """Measures cohorts of several sizes.

    Args:
        workers: how many processes are started, at least 2.
        cohorts: clients a round, each at least 1.
    """
    labels = np.random.default_rng(0).integers(10, size=EXAMPLES)
    even, skewed = (
        _steps(partitioner, labels) for partitioner in (Dirichlet(CLIENTS, 0.1), QuantitySkew(CLIENTS, 0.5))
    )
    waves = [Wave(0, assign(next(_costs(even, size)), workers)) for size in cohorts]
    return [
        Scaling(
            workers=workers,
            cohort_size=size,
            even_imbalance=round(imbalance(even, size, workers), 3),
            skewed_imbalance=round(imbalance(skewed, size, workers), 3),
            upload_bytes=size * len(_payload(0)),
            **found,
        )
        for size, found in zip(cohorts, _gather(workers, waves), strict=True)
    ]


def imbalance(steps: np.ndarray, cohort_size: int, workers: int) -> float:
    """How much longer the longest worker takes than the mean one, over rounds.

    Args:
        steps: of every client, (clients,).
        cohort_size: clients a round.
        workers: how many share it.
    """
    found = []
    for costs in _costs(steps, cohort_size):
        loads = np.bincount(assign(costs, workers), weights=costs, minlength=workers)
        found.append(float(loads.max() / loads.mean()))
    return statistics.mean(found)


def _costs(steps: np.ndarray, cohort_size: int) -> Iterator[list[int]]:
    """The steps of the clients of each round."""
    for round in range(1, ROUNDS + 1):
        cohort = sample_cohort(generator(0, Purpose.COHORT, round), len(steps), cohort_size)
        yield steps[cohort].tolist()


def _steps(partitioner: Partitioner, labels: np.ndarray) -> np.ndarray:
    sizes = partitioner.split(labels, None, np.random.default_rng(0)).sizes
    return np.array([local_steps(int(size), BATCH, 1, None) for size in sizes])


def _payload(client: int) -> bytes:
    """An upload of a real length, the same for everybody but for its header's examples."""
    vector = torch.randn(ADAPTER, generator=torch.Generator().manual_seed(0))
    return encode(SparseVector.at(vector, topk_indices(vector, kept_entries(DENSITY, ADAPTER))), examples=client)


def _gather(workers: int, waves: Sequence[Wave]) -> list[dict[str, Any]]:
    """Gathers every wave over so many processes; what each brought to a worker, and how long it took."""
    context = multiprocessing.get_context("fork")  # 64 times torch's import would take minutes
    with TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_work, args=(rank, workers, waves, Path(folder)), daemon=True)
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"one of {workers} workers stopped; what it said stands above")
        found: list[dict[str, Any]] = json.loads((Path(folder) / "found").read_text())
    return found


def _work(rank: int, workers: int, waves: Sequence[Wave], folder: Path) -> None:
    """One worker: sends what its clients would, and the server worker checks and notes what came."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "meeting"), workers), rank=rank, world_size=workers
    )
    carried = _count_carried()
    joined, found = Workers(rank, workers, torch.device("cpu"), PIECE_BYTES), []
    for wave in waves:
        mine = {at: _payload(at) for at in wave.of(rank)}
        dist.barrier()
        before, started = carried[0], time.perf_counter()
        arrived = dict(joined.gather(mine, wave))
        seconds = time.perf_counter() - started
        if rank == 0:
            wrong = [at for at in wave.positions if arrived[at] != _payload(at)]
            if wrong:
                raise RuntimeError(f"{len(wrong)} of {len(arrived)} uploads did not come as they were sent")
            found.append({"carried_bytes": carried[0] - before, "seconds": round(seconds, 3)})
    if rank == 0:
        (folder / "found").write_text(json.dumps(found))
    dist.destroy_process_group()


def _count_carried() -> list[int]:
    """Counts, from now on, the bytes that all-gathers bring to this process."""
    carried = [0]
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    gather = getattr(dist, name)

    def counting(rows: torch.Tensor, piece: torch.Tensor) -> Any:
        carried[0] += rows.numel() * rows.element_size()
        return gather(rows, piece)

    setattr(dist, name, counting)
    return carried
