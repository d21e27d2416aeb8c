"""How long a payload takes: the exact top k, writing it as bytes, reading it back, beside torch.topk alone."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fedsim.codec import decode, encode
from fedsim.sparse import SparseVector, kept_entries, topk_indices

DENSITIES = (1 / 4, 1 / 16, 1 / 64, 1 / 256)


def payload_times(length: int, repeats: int) -> list[dict[str, float]]:
    """Times random float32 vectors at four densities.

    Args:
        length: entries of the vector.
        repeats: calls of each; the median is kept.

    Returns:
        A row per density: `density`, `payload_bytes`, and milliseconds under the name of what took them.
    """
    vector = torch.randn(length, generator=torch.Generator().manual_seed(0))
    rows = []
    for density in DENSITIES:
        k = kept_entries(density, length)
        indices = topk_indices(vector, k)
        payload = encode(SparseVector.at(vector, indices))
        work: dict[str, Callable[[], Any]] = {
            "top_k_ms": lambda k=k: topk_indices(vector, k),  # type: ignore[misc]
            "top_k_and_encode_ms": lambda k=k: encode(SparseVector.at(vector, topk_indices(vector, k))),  # type: ignore[misc]
            "decode_ms": lambda payload=payload: decode(payload),  # type: ignore[misc]
            "torch_topk_ms": lambda k=k: torch.topk(vector.abs(), k),  # type: ignore[misc]
        }
        times = {name: round(_median_ms(call, repeats), 2) for name, call in work.items()}
        rows.append({"density": density, "payload_bytes": len(payload), **times})
    return rows


def _median_ms(call: Callable[[], Any], repeats: int) -> float:
    call()
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        spent.append((time.perf_counter() - started) * 1e3)
    return statistics.median(spent)
