"""What the server worker tells all workers before a round or an evaluation, so that each can do its share.

It is outside the ledger: on real devices it is at home already (a client's own parts, a mask it was sent before), or it
is no message at all (who does what in the simulation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from fedsim.method import ClientState, Method, Plan, ServerState, Shared
from fedsim.transport import Workers


@dataclass(frozen=True)
class Briefing:
    """What every worker knows of a round.

    Attributes:
        shared: what both ends know.
        plans: by position in the cohort; None for a client that is dropped.
        clients: what each client of the cohort keeps at home.
    """

    shared: Shared
    plans: list[Plan | None]
    clients: list[ClientState]

    def plan(self, position: int) -> Plan:
        """Returns what is asked of a client that is not dropped."""
        return self.plans[position] or Plan()


def brief(method: Method, state: ServerState, round: int, cohort: Sequence[int], workers: Workers) -> Briefing:
    """Prepares a round on the server worker and tells everybody. Every worker must call it.

    Args:
        method: decides.
        state: the server's.
        round: 1 to the number of rounds.
        cohort: the clients of the round.
        workers: who is told.
    """
    plans: list[Plan | None] = []
    tensors: dict[str, Tensor] = {}
    if workers.is_server:
        tensors = named("shared", method.prepare(state, round))
        plans = [method.plan(state, round, client) for client in cohort]
    facts, found = tell(state, {"plans": [p and asdict(p) for p in plans]}, tensors, workers, cohort)
    shared = Shared(round, state.seed, state.layout, state.initial, below("shared", found))
    return Briefing(shared, [p and Plan(**p) for p in facts["plans"]], clients_of(facts, found))


def tell(
    state: ServerState,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    workers: Workers,
    clients: Sequence[int] = (),
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Tells all workers what the server worker knows, and how the backbone changed since they were last told.

    Args:
        state: the server's; on the other workers only its backbone is read, and changes with the server's.
        facts: what JSON can hold.
        tensors: by name.
        workers: who is told.
        clients: whose state is told too, for `clients_of` to read.

    Returns:
        Facts and tensors, on every worker.
    """
    said, sent = dict(facts), dict(tensors)
    if workers.is_server:
        held = [state.client(client) for client in clients]
        said["rounds"] = [client.round for client in held]
        for at, client in enumerate(held):
            sent |= named(f"client.{at}", client.tensors)
        sent |= named("backbone", state.backbone.take_unsent())
    said, sent = workers.tell(said, sent)
    if not workers.is_server:
        state.backbone.write(below("backbone", sent))
    return said, sent


def clients_of(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[ClientState]:
    """Reads what clients keep out of what `tell` returned."""
    return [ClientState(round, below(f"client.{at}", tensors)) for at, round in enumerate(facts["rounds"])]


def named(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts a group before the names of tensors."""
    return {f"{group}.{name}": tensor for name, tensor in tensors.items()}


def below(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a group, by their names within it."""
    start = f"{group}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
