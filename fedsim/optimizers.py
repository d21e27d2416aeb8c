"""A client's optimisers, flat: on one client's (P,) or on the (G, P) of G packed clients, with the same code.

They do what torch.optim.SGD and torch.optim.AdamW do, without an object per client or a kernel per tensor.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]


class LocalOptimizer(Protocol):
    """Steps vectors in place. Its state starts as zeros, so zeroing a row is a fresh client."""

    def state(self, vector: Tensor) -> State:
        """Returns fresh state for (..., P)."""

    def step(self, vector: Tensor, gradient: Tensor, state: State, rate_scale: Tensor | None) -> None:
        """Takes one step on (..., P), in place; `rate_scale` (..., P) multiplies the learning rate where given."""


def clip(gradient: Tensor, most: float | None) -> None:
    """Scales gradients (..., P) down, in place, each on its own, to a norm of `most` at most; None leaves them.

    As torch.nn.utils.clip_grad_norm_ does for one client.
    """
    if most is not None:
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1))


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD with zero dampening.

    Args:
        lr: learning rate, above 0.
        momentum: in [0, 1).
        weight_decay: added to the gradient, times the vector.
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0

    def state(self, vector: Tensor) -> State:
        """Returns zero momentum for (..., P)."""
        return {"momentum": torch.zeros_like(vector)} if self.momentum else {}

    def step(self, vector: Tensor, gradient: Tensor, state: State, rate_scale: Tensor | None) -> None:
        """Takes one step on (..., P), in place."""
        if self.weight_decay:
            gradient = gradient.add(vector, alpha=self.weight_decay)
        if self.momentum:
            gradient = state["momentum"].mul_(self.momentum).add_(gradient)
        # The same kernel either way: in a pack a client without a scale gets ones where its neighbour has one.
        vector.add_(gradient if rate_scale is None else gradient * rate_scale, alpha=-self.lr)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW.

    Args:
        lr: learning rate, above 0.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: per unit of learning rate.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def state(self, vector: Tensor) -> State:
        """Returns zero moments for (..., P) and a step count of zero for each row."""
        count = torch.zeros((*vector.shape[:-1], 1), dtype=torch.float64, device=vector.device)
        return {"first": torch.zeros_like(vector), "second": torch.zeros_like(vector), "count": count}

    def step(self, vector: Tensor, gradient: Tensor, state: State, rate_scale: Tensor | None) -> None:
        """Takes one step on (..., P), in place."""
        first, second, count = state["first"], state["second"], state["count"].add_(1)
        first.lerp_(gradient, 1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        # Corrections in float64, then back: a (G, 1) float64 factor would promote the whole vector.
        rate = (self.lr / (1 - self.betas[0] ** count)).to(vector.dtype)
        root = (1 - self.betas[1] ** count).sqrt().to(vector.dtype)
        if rate_scale is not None:
            rate = rate * rate_scale
        if self.weight_decay:
            vector.sub_(
                vector
                * (self.lr * self.weight_decay if rate_scale is None else self.lr * self.weight_decay * rate_scale)
            )
        vector.sub_(rate * first / (second.sqrt() / root + self.eps))
