"""FLoRA-NA: one coefficient per client and factor, so that the product comes close to the mean of the products.

Nguyen et al., "Communication-Efficient and Accurate Approach for Aggregation in Federated Low-Rank Adaptation" (arXiv
2509.26399): A = sum_u p_u A_u and B = sum_u q_u B_u, with p and q that minimise the Frobenius norm of
B A - sum_u w_u B_u A_u (its Eq. 6, as its reviewers quote it). Down and up: all of P, as FedIT; the server alone does
more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.errors import ConfigurationError
from fedsim.factors import Combine, Combined, FactorAggregate, Stack, Weighting, assign
from fedsim.method import Aggregate, Method, ServerState, Shared
from fedsim.parameters import Layout

TOLERANCE = 1e-12
"""Directions of relative curvature below this are rounding of float32: there, a coefficient stays where it was."""


@dataclass
class FLoRANA(Method):
    """Combines the clients' factors so that their product is nearest to the mean of products; all of P travels.

    Source: Nguyen et al. 2025, FLoRA-NA (arXiv 2509.26399), Eq. 6.

    The paper does not say how Eq. 6 is solved, nor whether modules share p and q. The solver here is ours: alternating
    least squares, which starts at FedIT's coefficients and never gets worse, on inner products of r by r. As (c p, q /
    c) are as good for any c, the last step makes norm(B) / norm(A) what it is for the mean factors. The head is a
    plain weighted mean.

    Args:
        weighting: of the clients, in the mean of the products and in the head's: equal, as in the paper, or by their
            examples.
        scope: p and q per module, or one pair for the whole model.
        sweeps: how often q and then p is solved for, at least 1.
    """

    assigns: ClassVar[bool] = True

    weighting: Weighting = "uniform"
    scope: Literal["module", "model"] = "module"
    sweeps: int = 5

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ConfigurationError(f"method.sweeps is {self.sweeps}; expected 1 or more, FedIT being what 0 would be")

    def check(self, layout: Layout) -> None:
        """There must be factors to combine."""
        layout.require_pairs("FLoRANA")

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        """Solves Eq. 6 for every module, or once for all."""
        if self.scope == "model":
            return FactorAggregate(state, self.weighting, survey=self._combine)
        return FactorAggregate(state, self.weighting, lambda stack: self._combine([stack])(stack))

    def step(self, state: ServerState, update: Tensor) -> None:
        """Takes over the combination."""
        assign(state, update)

    def _combine(self, stacks: Iterable[Stack]) -> Combine:
        """How these modules are combined, all by the same coefficients."""
        p, q = coefficients(stacks, self.sweeps)
        return partial(_combined, p=p, q=q)


def coefficients(stacks: Iterable[Stack], sweeps: int) -> tuple[Tensor, Tensor]:
    """Solves Eq. 6 for modules that share their coefficients.

    Args:
        stacks: at least one, of the same clients and rank.
        sweeps: with each of them, the sum of the squared distances falls or stays.

    Returns:
        p of A and q of B, (C,) each.
    """
    grams = []
    for stack in stacks:  # one after another, as its inner products are all that stays
        clients, rank, _ = stack.a.shape
        grams.append([gram.view(clients, rank, clients, rank) for gram in stack.grams])
    gram_a, gram_b = (torch.stack(both) for both in zip(*grams, strict=True))  # (L, C, R, C, R)
    weights = p = q = stack.weights
    for _ in range(sweeps):
        q = _best(q, gram_b, p, gram_a, weights)
        p = _best(p, gram_a, q, gram_b, weights)
    squares = _square(gram_b, q), _square(gram_a, p), _square(gram_a, weights), _square(gram_b, weights)
    if min(squares) > 0:
        b, a, mean_a, mean_b = squares
        gauge = ((b / a) * (mean_a / mean_b)) ** 0.25
        p, q = p * gauge, q / gauge
    return p, q


def _best(own: Tensor, gram: Tensor, other: Tensor, other_gram: Tensor, weights: Tensor) -> Tensor:
    """One half of a sweep: the least-squares coefficients of one factor while the other's stay.

    In q for the B_u: the normal equations are M q = c with M_uv = <B_u A, B_v A> and c_u = <B_u A, sum_v w_v B_v A_v>,
    where A = sum_v p_v A_v. Of all solutions it takes the one nearest to where it was, so clients that are alike
    keep their weights.
    """
    half = torch.einsum("u,luivj->livj", other, other_gram)  # A A_v^T
    matrix = torch.einsum("luivj,lij->uv", gram, torch.einsum("livj,v->lij", half, other))
    target = torch.einsum("luivj,livj,v->u", gram, half, weights)
    inverse: Tensor = torch.linalg.pinv(matrix, rtol=TOLERANCE, hermitian=True)
    return own + inverse @ (target - matrix @ own)


def _square(gram: Tensor, coefficients: Tensor) -> float:
    """The squared Frobenius norm of a combination, over all modules."""
    return float(torch.einsum("luivi,u,v->", gram, coefficients, coefficients))


def _combined(stack: Stack, p: Tensor, q: Tensor) -> Combined:
    """A = sum p_u A_u and B = sum q_u B_u."""
    return Combined(torch.tensordot(p, stack.a, 1), torch.tensordot(q, stack.b, 1))
