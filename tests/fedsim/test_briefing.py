"""What the server worker tells the others, on two workers in one process: each with a model of its own."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.briefing import Briefing, below, brief, clients_of, named, tell
from fedsim.method import ClientState, Method, Plan, ServerState
from fedsim.server import initial_state
from fedsim.transport import Workers, pack, unpack
from tests import tiny


class OneOfTwo(Workers):
    """A worker whose broadcasts lie in a list until the other one reads them."""

    def __init__(self, rank: int, mail: list[bytes]) -> None:
        super().__init__(rank, 2, tiny.CPU)
        self.mail = mail

    def tell(self, facts: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.is_server:
            self.mail.append(pack(facts, tensors))
            return facts, tensors
        return unpack(self.mail.pop(0), tiny.CPU)


@dataclass
class Secretive(Method):
    """Hands a mask to everybody, drops client 4, and asks of the others what they did before."""

    asked: list[int] = field(default_factory=list)
    lora_rank: int = 2

    def prepare(self, state: ServerState, round: int) -> dict[str, Tensor]:
        return {"mask": torch.tensor([0, round])}

    def plan(self, state: ServerState, round: int, client: int) -> Plan | None:
        self.asked.append(client)
        return None if client == 4 else Plan(lora_rank=client, since=state.client(client).round)


@dataclass
class Side:
    """One of the two workers."""

    method: Secretive
    built: tiny.Tiny
    state: ServerState
    workers: OneOfTwo

    def brief(self, round: int, cohort: list[int]) -> Briefing:
        return brief(self.method, self.state, round, cohort, self.workers)


def two() -> tuple[Side, Side]:
    mail: list[bytes] = []
    sides = []
    for rank in (0, 1):
        method = Secretive()
        built = tiny.build(method)
        state = initial_state(tiny.experiment(built, [4] * 8))
        sides.append(Side(method, built, state, OneOfTwo(rank, mail)))
    return sides[0], sides[1]


def test_all_workers_know_the_same_of_a_round() -> None:
    server, other = two()
    server.state.clients = {3: ClientState(5, {"own.b": torch.tensor([1.0]), "mask": torch.tensor([True])})}
    cohort = [7, 3, 4]
    ours, theirs = server.brief(6, cohort), other.brief(6, cohort)
    assert ours.plans == theirs.plans == [Plan(lora_rank=7), Plan(lora_rank=3, since=5), None]
    for briefing, side in ((ours, server), (theirs, other)):
        shared = briefing.shared
        assert (shared.round, shared.seed, shared.layout) == (6, 0, side.state.layout)
        assert torch.equal(shared.initial, server.state.initial)
        assert {name: tensor.tolist() for name, tensor in shared.tensors.items()} == {"mask": [0, 6]}
        assert [held.round for held in briefing.clients] == [0, 5, 0]
        kept = [{name: tensor.tolist() for name, tensor in held.tensors.items()} for held in briefing.clients]
        assert kept == [{}, {"own.b": [1.0], "mask": [True]}, {}]


def test_only_the_server_worker_decides() -> None:
    """Its state alone is the run's: another's plans would be made of nothing."""
    server, other = two()
    server.brief(1, [2, 1])
    other.brief(1, [2, 1])
    assert (server.method.asked, other.method.asked) == ([2, 1], [])


def weight(side: Side, layer: str) -> Tensor:
    return side.state.backbone.tensor(f"{layer}.base_layer.weight")


def test_a_changed_backbone_reaches_the_other_worker_once() -> None:
    server, other = two()
    layer = server.state.layout.pairs[1].layer
    before, change = weight(server, layer).clone(), torch.full((16, 16), 0.5)
    server.state.backbone.add(layer, change)
    assert torch.equal(weight(other, layer), before)
    server.brief(1, [2])
    assert len(other.workers.mail[0]) > change.numel() * 4
    other.brief(1, [2])
    assert torch.equal(weight(other, layer), before + change)
    assert torch.equal(weight(server, layer), before + change)
    server.brief(2, [2])
    assert len(other.workers.mail[0]) < change.numel() * 4  # it is not told again
    other.brief(2, [2])
    server.state.backbone.add(layer, change)
    tell(server.state, {}, {}, server.workers)  # an evaluation tells as well as a round does
    tell(other.state, {}, {}, other.workers)
    assert torch.equal(weight(other, layer), before + change + change)


def test_nobody_is_told_what_clients_keep_unless_asked() -> None:
    server, other = two()
    server.state.clients = {2: ClientState(1, {"own": torch.ones(1)})}
    facts, found = tell(server.state, {"x": 1}, {"y": torch.ones(2)}, server.workers)
    assert (facts, list(found)) == ({"x": 1, "rounds": []}, ["y"])
    assert clients_of(facts, found) == []
    facts, found = tell(other.state, {}, {}, other.workers)
    assert (facts, list(found)) == ({"x": 1, "rounds": []}, ["y"])


def test_ten_clients_are_not_confused_with_the_first() -> None:
    """client.1 is no prefix of client.10."""
    server, other = two()
    server.state.clients = {c: ClientState(c, {"own": torch.tensor([float(c)])}) for c in range(12)}
    for side in (server, other):
        briefing = side.brief(1, list(range(12)))
        assert [held.tensors["own"].item() for held in briefing.clients] == list(range(12))


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b.c", "group.d"]])
def test_what_is_put_into_a_group_is_found_below_it(names: list[str]) -> None:
    tensors = {name: torch.tensor(float(at)) for at, name in enumerate(names)}
    grouped = {**named("group", tensors), **named("groups", tensors), **named("other.group", tensors)}
    assert below("group", grouped) == tensors
