"""FLASC's Algorithm 1 again, as printed: one process, named tensors, no flat buffer, no payloads, nothing shared."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oracle.naive_codec import naive_topk

Batches = Sequence[np.ndarray]


def topk_mask(vector: Tensor, density: float) -> Tensor:
    """TopKMask(|P|, d): ones at the k largest, ties to the lowest index."""
    mask = torch.zeros_like(vector)
    mask[naive_topk(vector.tolist(), max(1, int(density * len(vector))))] = 1
    return mask


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


def write(model: nn.Module, vector: Tensor) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter, part in zip(trainable, vector.split([p.numel() for p in trainable]), strict=True):
        parameter.data = part.view_as(parameter).clone()


def train(model: nn.Module, columns: dict[str, Tensor], batches: Batches, lr: float, momentum: float) -> Tensor:
    """Lines 11 to 15: P_i' after a client's local steps."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum)
    for rows in batches:
        rows = torch.from_numpy(rows[rows >= 0])
        optimizer.zero_grad()
        logits = model(pixel_values=columns["pixel_values"][rows]).logits
        functional.cross_entropy(logits, columns["labels"][rows]).backward()
        optimizer.step()
    return flat(model)


def flasc(
    model: nn.Module,
    columns: dict[str, Tensor],
    cohorts: Sequence[Sequence[int]],
    batches_of: Callable[[int, int], Batches],
    densities: tuple[float, float],
    client: tuple[float, float],
    server_lr: float,
) -> list[Tensor]:
    """Runs Algorithm 1.

    Args:
        model: the adapted backbone; it is left alone.
        columns: the training set.
        cohorts: of each round (lines 6 and 7).
        batches_of: (round, client) to its local steps.
        densities: d_down and d_up.
        client: local rate and momentum.
        server_lr: eta_s.

    Returns:
        P after each round.
    """
    vector = nn.Parameter(flat(model))
    optimizer = torch.optim.Adam([vector], server_lr)  # line 3
    after = []
    for round, cohort in enumerate(cohorts, start=1):
        down = topk_mask(vector.detach(), densities[0])  # line 5
        updates = []
        for member in cohort:
            mine = copy.deepcopy(model)
            start = vector.detach() * down  # line 10
            write(mine, start)
            update = start - train(mine, columns, batches_of(round, member), *client)  # line 16
            updates.append(update * topk_mask(update, densities[1]))  # lines 17 and 18
        vector.grad = sum(updates[1:], start=updates[0]) / len(updates)  # line 20
        optimizer.step()  # line 21
        after.append(vector.detach().clone())
    return after
