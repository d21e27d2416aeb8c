"""Products of factors that go into frozen weights for good, and what clients have to be told of them.

A product stands in `ServerState.tensors` until nobody can need it: a client lacks what was merged since it last took
part, and once that is as much as the changed weights themselves, it is sent those. So what is kept is always less.
A client's news are parts of a message beside the values of P. The receiving side reads none of them: the engine keeps
the backbone of every worker in step, in the precision of the weights, whatever value dtype the bytes are counted in.
"""

import torch
from torch import Tensor

from fedsim.sparse import SparseVector
from fedsim.state import ServerState

_FORGOTTEN = "merged_until"
"""Names the last round whose products are kept no more."""


def merge(state: ServerState, round: int, layer: str, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Adds scale * left @ right to an adapted module's frozen weight, for everybody.

    Args:
        state: the server's.
        round: the round that ends.
        layer: the module, once a round.
        left: (D_out, K), of any K, 0 for nothing to add.
        right: (K, D_in).
        scale: alpha / r.

    Returns:
        (D_out, D_in) float64, by how much the weight in use moved, over the scale.
    """
    if not left.shape[1]:
        return left.new_zeros(len(left), right.shape[1], dtype=torch.float64)
    left, right = left.to(state.vector), right.to(state.vector)  # as they travel, so that both ends add the same
    product = left.double() @ right.double()
    factors = torch.cat([left.reshape(-1), right.reshape(-1)])
    shorter = factors if len(factors) < product.numel() else product.reshape(-1).to(factors)
    state.tensors[f"{_prefix(round)}{layer}"] = shorter
    return state.backbone.add(layer, scale * product) / scale


def first_lacking(state: ServerState, client: int) -> int:
    """The first round whose products a client lacks; 0 where it needs the changed weights themselves: `Plan.since`."""
    first = max(1, state.client(client).round)  # it downloads before the products of its round are made
    return first if first > _forgotten(state) else 0


def news(state: ServerState, since: int) -> tuple[SparseVector, ...]:
    """What a client has to be told of the frozen weights.

    Args:
        state: the server's.
        since: what `first_lacking` gave.

    Returns:
        A part per round that it lacks: of each module the two factors, or their product where that is shorter; the
        length tells which. Or one part with all changed weights. Modules in the order of their names. Nothing where
        nothing changed.
    """
    if not since:
        parts = [[weight for _, weight in sorted(state.backbone.changed.items())]]
    else:
        parts = [_kept(state, round) for round in _rounds(state) if round >= since]
    return tuple(SparseVector.dense(torch.cat([t.reshape(-1) for t in part])) for part in parts)


def forget(state: ServerState) -> None:
    """Drops the products that are sent no more, after a round's are all merged."""
    whole, total = sum(weight.numel() for weight in state.backbone.changed.values()), 0
    for round in reversed(_rounds(state)):
        total += sum(tensor.numel() for tensor in _kept(state, round))
        if total >= whole:
            state.tensors[_FORGOTTEN] = torch.tensor(max(round, _forgotten(state)))
            state.tensors = {name: t for name, t in state.tensors.items() if not name.startswith(_prefix(round))}


def _prefix(round: int) -> str:
    return f"merged.{round}."


def _rounds(state: ServerState) -> list[int]:
    """The rounds whose products are kept, rising."""
    return sorted({int(name.split(".")[1]) for name in state.tensors if name.startswith("merged.")})


def _kept(state: ServerState, round: int) -> list[Tensor]:
    """A round's products, in the order of the modules' names."""
    return [state.tensors[name] for name in sorted(state.tensors) if name.startswith(_prefix(round))]


def _forgotten(state: ServerState) -> int:
    return int(state.tensors.get(_FORGOTTEN, 0))
