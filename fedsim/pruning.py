"""Masks of what is worth keeping: chosen by size, applied to the server for good, and sent once, then as changes.

A pruned entry's round stands in `ServerState.tensors`, so that what any client holds of the mask can be told from the
last round that it took part in. What is kept is known to both ends once a client has its download, so that its values
cost no indices.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fedsim.parameters import Layout
from fedsim.sparse import IndexSet, SparseVector, kept_entries, topk_indices
from fedsim.state import Download, Plan, ServerState, Shared

MaskScope = Literal["segment", "global"]
"""Choose the same fraction of A, of B and of the head, each on its own; or over all of P at once, as printed."""

Origin = Literal["tuned", "initial"]
"""What a mask that is taken once is applied to: P after the dense round, or P as setup drew it."""

Choose = Callable[[ServerState], Tensor]
"""Finds what is kept of the server's P, int64 (k,), rising; pure."""

PRUNED = "pruned_round"
"""Names, in the server's tensors, (P,) int32: the round in which an entry was pruned, 0 for one that is kept."""

MASK_ROUNDS = "mask_rounds"
"""Names, in the server's tensors, (m,) int64: the rounds that began with a smaller mask, rising."""

NEXT = "next_density"
"""Names, in the server's tensors, a float64: what the next round will prune to, for the evaluation before it."""

_TOLD = "told_dead_adapter"


# Choosing.


def largest(vector: Tensor, density: float, layout: Layout, scope: MaskScope, alive: Tensor | None = None) -> Tensor:
    """Finds the entries of largest absolute value: TopKMask(|P|, d).

    After one Adam round all of B has about the size of the server's rate, and a global top-k may hold none of it: such
    an adapter is zero for ever. Per segment it keeps its share.

    Args:
        vector: (P,), finite.
        density: fraction that is kept, of all entries, in (0, 1]; at least one entry of each segment.
        layout: of P.
        scope: within each segment, or over all of P.
        alive: (P,) bool, which entries may be kept; None for all. A kept entry may be zero, and then it would tie with
            those that were pruned.

    Returns:
        int64 (k,), rising.
    """
    everything = torch.arange(len(vector))
    groups = [everything] if scope == "global" else [layout.where([segment]) for segment in layout.segments()]
    parts = []
    for places in (group.to(vector.device) for group in groups):
        count = kept_entries(density, len(places))
        left = places if alive is None else places[alive[places]]
        parts.append(left[topk_indices(vector[left], min(count, len(left)))])
    return torch.cat(parts).sort().values


def iterative_density(round: int, prune_fraction: float, prune_every_rounds: int) -> float:
    """The d of iterative magnitude pruning (FLASC, Algorithm 5, lines 6 and 9 to 12).

    Args:
        round: s, 1 to the number of rounds, a multiple of q.
        prune_fraction: p, in [0, 1).
        prune_every_rounds: q, at least 1.

    Returns:
        1 at the first pruning, then (1 - p) times what it was at the one before.
    """
    return math.prod([1 - prune_fraction] * (round // prune_every_rounds - 1))


def scope_in_label(scope: MaskScope) -> str:
    """What a label says of the scope: nothing of the default."""
    return ", global mask" if scope == "global" else ""


# At the server.


def prune(state: ServerState, kept: Tensor, round: int) -> None:
    """Removes all other entries for good: from P, from the optimiser's moments, and from what is ever kept again.

    Args:
        state: the server's.
        kept: int64 (k,), rising. Entries that were pruned before stay so.
        round: the round that begins, 1 or more.
    """
    pruned = state.tensors.setdefault(PRUNED, torch.zeros_like(state.vector, dtype=torch.int32))
    goes = pruned == 0
    goes[kept] = False
    if goes.any():
        pruned[goes] = round
        before = state.tensors.get(MASK_ROUNDS, torch.empty(0, dtype=torch.int64))
        state.tensors[MASK_ROUNDS] = torch.cat([before, torch.tensor([round], device=before.device)])
    zero_pruned(state)
    note_dead_adapter(state, kept)


def prune_smallest(state: ServerState, density: float, scope: MaskScope, round: int) -> None:
    """Prunes to a density that falls from round to round (FLASC, Algorithm 5, lines 10 and 11).

    Args:
        state: the server's.
        density: fraction of all of P that is left, in (0, 1].
        scope: within each segment, or over all of P.
        round: the round that begins, 1 or more.
    """
    if density < 1:
        prune(state, largest(state.vector.detach(), density, state.layout, scope, alive(state)), round)


def foresee(state: ServerState, density: float | None) -> None:
    """Remembers what `prune_smallest` will be asked for when the next round begins; None for nothing."""
    state.tensors[NEXT] = torch.tensor(1.0 if density is None else density, dtype=torch.float64)


def next_mask(state: ServerState, scope: MaskScope) -> dict[str, Tensor]:
    """Finds what the next client trains, by the name "kept", int64 (k,), rising; nothing where that is all of P."""
    density = float(state.tensors.get(NEXT, 1.0))
    if density == 1:
        return known_mask(state)
    return {"kept": largest(state.vector.detach(), density, state.layout, scope, alive(state))}


def as_next_downloaded(state: ServerState, scope: MaskScope) -> dict[str, Tensor]:
    """Returns the views of methods that prune when a round begins: P as the next client gets it, and P as it is."""
    whole, kept = state.vector.detach(), next_mask(state, scope)
    masked = SparseVector.at(whole, kept["kept"]).to_dense() if kept else whole
    return {"masked": masked, "full": whole}


def awaits_mask(state: ServerState) -> bool:
    """Whether the dense round is over, and the mask that is taken once is not: P has moved, and nothing is pruned."""
    return PRUNED not in state.tensors and not torch.equal(state.vector, state.initial)


def prune_once(state: ServerState, choose: Choose, origin: Origin, round: int, fresh_optimizer: bool = True) -> None:
    """Fixes the mask after the dense round, and does nothing in any other (FLASC, Algorithm 6, lines 18 to 21).

    Args:
        state: the server's.
        choose: finds what is kept.
        origin: what the mask is applied to.
        round: the round that begins, 1 or more.
        fresh_optimizer: whether the optimiser forgets the dense round.
    """
    if not awaits_mask(state):
        return
    kept = choose(state)
    if origin == "initial":
        state.vector.data.copy_(state.initial)
    prune(state, kept, round)
    if fresh_optimizer:
        state.restart_optimizer()


def with_mask_taken(state: ServerState, choose: Choose, origin: Origin) -> Tensor:
    """Returns P as the next client downloads it, (P,): after the dense round, as `prune_once` will leave it."""
    vector = state.vector.detach()
    if not awaits_mask(state):
        return vector
    return SparseVector.at(state.initial if origin == "initial" else vector, choose(state)).to_dense()


def alive(state: ServerState) -> Tensor | None:
    """Returns which entries are not pruned, (P,) bool; None where all are."""
    pruned = state.tensors.get(PRUNED)
    return None if pruned is None else pruned == 0


def zero_pruned(state: ServerState) -> None:
    """Sets P and the optimiser's moments to zero where entries are pruned: after every prune and every step."""
    left = alive(state)
    if left is None:
        return
    state.vector.data.mul_(left)
    for moment in state.optimizer.state.get(state.vector, {}).values():
        if isinstance(moment, Tensor) and moment.shape == left.shape:
            moment.mul_(left)


def note_dead_adapter(state: ServerState, kept: Tensor) -> None:
    """Tells the user, once a run, that a mask holds nothing of B, so that the adapter stays zero.

    Args:
        state: the server's.
        kept: int64 (k,), the mask.
    """
    sizes = state.layout.segments()
    if "B" not in sizes or _TOLD in state.tensors:
        return
    left = {name: int(torch.isin(kept, state.layout.where([name]).to(kept.device)).sum()) for name in ("B", "head")}
    if left["B"]:
        return
    state.tensors[_TOLD] = torch.tensor(True)
    head = f" and {left['head']} of the head's {sizes['head']}" if "head" in sizes else ""
    state.notes.append(
        f"the mask keeps no entry of any B{head}: the adapter stays zero; give --method.mask_scope segment"
    )


# To the clients.


def known_mask(state: ServerState) -> dict[str, Tensor]:
    """What `Method.prepare` hands out: "kept", int64 (k,), rising; nothing while no entry was pruned."""
    left = alive(state)
    return {} if left is None else {"kept": left.nonzero().squeeze(1)}


def mask_round(state: ServerState, client: int) -> int:
    """The round whose mask a client still holds, for `Plan.since`; 0 for none: then all of P is kept, as it knows it.

    Clients that hold the same mask get the same number, whenever they took part, so that they share a download.
    """
    rounds = state.tensors.get(MASK_ROUNDS, torch.empty(0, dtype=torch.int64))
    known = rounds[rounds <= state.client(client).round]
    return int(known[-1]) if len(known) else 0


def download_kept(state: ServerState, shared: Shared, plan: Plan) -> Download:
    """Returns P * M for clients that hold the mask of `plan.since`, with what they have to be told of M."""
    vector = state.vector.detach()
    if "kept" not in shared.tensors:
        return Download(SparseVector.dense(vector))
    return Download(SparseVector.at(vector, shared.tensors["kept"]), mask_news(state, plan.since))


def mask_news(state: ServerState, since: int) -> tuple[IndexSet, ...]:
    """What a client has to be told of the mask; a newcomer, as one who knows no mask, holds all of P.

    Which of the two it is told, it sees by their number: as many values as are kept come with it.

    Args:
        state: the server's.
        since: what `mask_round` says of the client.

    Returns:
        No part where it knows the mask; otherwise, over the entries that it holds, those that are still kept, or those
        that are gone where they are fewer.
    """
    pruned = state.tensors.get(PRUNED)
    if pruned is None or not (pruned > since).any():
        return ()
    gone = pruned[(pruned == 0) | (pruned > since)] > 0
    fewer = gone if 2 * int(gone.sum()) < len(gone) else ~gone
    return (IndexSet(len(gone), fewer.nonzero().squeeze(1)),)
