"""FLASC's Algorithms 5 and 6 again, as printed: one process, named tensors, nothing shared with the engine."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oracle.algorithm_1 import Batches, flat, topk_mask, write


@dataclass
class Federation:
    """What TrainStep needs: the model, its data, who takes part in each round, and the rates."""

    model: nn.Module
    columns: dict[str, Tensor]
    cohorts: Sequence[Sequence[int]]
    batches_of: Callable[[int, int], Batches]
    client_lr: float
    momentum: float
    server_lr: float
    scope: str

    def mask(self, vector: Tensor, density: float) -> Tensor:
        """TopKMask(|P|, d): over all of P, or within all A, all B, the head, and the backbone, each on its own."""
        if self.scope == "global":
            return topk_mask(vector, density)
        places: dict[str, list[Tensor]] = {}
        start = 0
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                segment = next((s for s in ("lora_A", "lora_B", "modules_to_save") if s in name), "backbone")
                places.setdefault(segment, []).append(torch.arange(start, start + parameter.numel()))
                start += parameter.numel()
        mask = torch.zeros_like(vector)
        for parts in places.values():
            where = torch.cat(parts)
            mask[where] = topk_mask(vector[where], density)
        return mask

    def train_step(self, round: int, vector: Tensor, mask: Tensor) -> Tensor:
        """TrainStep(P, M) of FedAdam (Algorithm 3): the mean of what clients change, training inside the mask alone."""
        cohort = self.cohorts[round - 1]
        changes = [vector - self._client(round, member, vector, mask) for member in cohort]
        return sum(changes[1:], start=changes[0]) / len(changes)

    def _client(self, round: int, client: int, start: Tensor, mask: Tensor) -> Tensor:
        mine = copy.deepcopy(self.model)
        write(mine, start)
        trainable = [p for p in mine.parameters() if p.requires_grad]
        masks = mask.split([p.numel() for p in trainable])
        optimizer = torch.optim.SGD(trainable, self.client_lr, self.momentum)
        for rows in self.batches_of(round, client):
            rows = torch.from_numpy(rows[rows >= 0])
            optimizer.zero_grad()
            logits = mine(pixel_values=self.columns["pixel_values"][rows]).logits
            functional.cross_entropy(logits, self.columns["labels"][rows]).backward()
            for parameter, own in zip(trainable, masks, strict=True):
                parameter.grad *= own.view_as(parameter)  # gradients are masked too (Section 3, "pruning")
            optimizer.step()
        return flat(mine)


def iterative_pruning(federation: Federation, prune_fraction: float, prune_every: int) -> list[Tensor]:
    """Algorithm 5: P after each round; on LoRA AdapterLTH, on the backbone FedSparsifyGlobal."""
    vector = nn.Parameter(flat(federation.model))
    optimizer = torch.optim.Adam([vector], federation.server_lr)  # line 7
    mask, density, after = torch.ones_like(vector), 1.0, []
    for round in range(1, len(federation.cohorts) + 1):
        if round % prune_every == 0:  # lines 9 to 12
            mask = mask * federation.mask(vector.detach(), density)  # removed for good: none comes back
            remove(vector, optimizer, mask)
            density = density * (1 - prune_fraction)
        vector.grad = federation.train_step(round, vector.detach(), mask)
        optimizer.step()
        after.append(vector.detach().clone())
    return after


def fixed_density(federation: Federation, density: float, dense_rounds: int, go_on_from: str) -> list[Tensor]:
    """Algorithm 6 with the score of lines 14 to 18, S = |P'| after dense rounds: SparseAdapter, SPDST."""
    vector = nn.Parameter(flat(federation.model))
    initial = vector.detach().clone()
    optimizer = torch.optim.Adam([vector], federation.server_lr)
    mask, after = torch.ones_like(vector), []
    for round in range(1, len(federation.cohorts) + 1):
        if round == dense_rounds + 1:  # lines 18 to 21
            mask = federation.mask(vector.detach(), density)
            if go_on_from == "initial":  # line 20 has P, not the P' of line 16
                vector.data = initial
            remove(vector, optimizer, mask)
            optimizer = torch.optim.Adam([vector], federation.server_lr)
        vector.grad = federation.train_step(round, vector.detach(), mask)
        optimizer.step()
        after.append(vector.detach().clone())
    return after


def federated_select(federation: Federation, density: float, dense_rounds: int) -> list[Tensor]:
    """Algorithm 6, lines 23 to 25: the mask is chosen anew in every round, and the server keeps all of P."""
    vector = nn.Parameter(flat(federation.model))
    optimizer = torch.optim.Adam([vector], federation.server_lr)
    after = []
    for round in range(1, len(federation.cohorts) + 1):
        mask = torch.ones_like(vector)
        if round > dense_rounds:
            mask = federation.mask(vector.detach(), density)
        vector.grad = federation.train_step(round, vector.detach() * mask, mask)
        optimizer.step()
        after.append(vector.detach().clone())
    return after


def remove(vector: nn.Parameter, optimizer: torch.optim.Optimizer, mask: Tensor) -> None:
    """Takes entries out of P, and out of what the optimiser remembers of them."""
    vector.data *= mask
    for moment in optimizer.state[vector].values():
        if moment.shape == mask.shape:
            moment *= mask
