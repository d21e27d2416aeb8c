"""Flower's simulation: FedAvg on Ray, as its users write it. Only a Python that has `flwr` imports this file.

Source: https://flower.ai/docs/framework, the message API (`flwr.serverapp`, `flwr.clientapp`).

Two actors of Ray share the clients of a round, each with a model and the data of its own, made at its first client and
kept; only the adapter and the head travel. A round is a call of the strategy's `start` for one round: Flower sends the
common start to a node for each client, waits for the replies (it looks for them ten times a second, and nodes look for
work as often), and averages them. Counted beside that is sending the update to the benchmark; starting Ray and the
simulation is not. Its own evaluation is off. Ray's and Flower's threads never quite sleep, but take little.

`run_simulation` asks to be replaced by `flwr run`, which starts the same from a project's folder and cannot be told
rounds.
"""

import os
import pickle
from collections.abc import Iterable
from functools import cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn

from launch.benchmarks.local_work import LR, MOMENTUM, Arena, flat
from launch.benchmarks.peers.serve import Told

ACTORS = 2


class Cohorts(FedAvg):
    """Federated averaging of the engine's cohorts: a node stands for whichever client it is told.

    Args:
        arena: of the work.
    """

    def __init__(self, arena: Arena) -> None:
        super().__init__(fraction_evaluate=0.0)
        self._arena = arena
        self.round = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Writes to a node for each client of the told round."""
        cohort = self._arena.cohort(self.round)
        for node, client in zip(sorted(grid.get_node_ids()), cohort, strict=True):
            told = ConfigRecord({"round": self.round, "client": client})
            yield Message(RecordDict({"arrays": arrays, "config": told}), node, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Averages what came back, from every client: Flower goes on without those that failed."""
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
        averaged: tuple[ArrayRecord | None, MetricRecord | None] = super().aggregate_train(server_round, replies)
        return averaged


def serve(arena: Arena, told: Told) -> None:
    """Does the rounds that it is told."""
    server, client = ServerApp(), ClientApp()
    work, threads = pickle.dumps(arena.work), torch.get_num_threads()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        model = arena.model()
        start, vector = ArrayRecord(_trained(model)), flat(model)
        strategy = Cohorts(arena)
        for strategy.round in told:
            result = strategy.start(grid, start, num_rounds=1)
            ends = result.arrays.to_torch_state_dict()
            told.answer(vector - torch.cat([end.reshape(-1) for end in ends.values()]))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return _train(work, threads, message)

    # Nodes stand idle but are asked for work all the time, so there are no more than a cohort.
    ray = {"num_cpus": ACTORS, "_temp_dir": os.getcwd()}
    backend = {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0}}
    run_simulation(server, client, arena.work.clients, backend_config=backend)


def _train(work: bytes, threads: int, message: Message) -> Message:
    """Trains one client on an actor."""
    arena, model = _kept(work, threads)
    content = message.content
    model.load_state_dict(content["arrays"].to_torch_state_dict(), strict=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LR, MOMENTUM)
    examples = 0
    for batch in arena.batches(int(content["config"]["round"]), int(content["config"]["client"])):
        optimizer.zero_grad()
        arena.loss(model, batch).backward()
        optimizer.step()
        examples += len(batch["labels"])
    reply = {"arrays": ArrayRecord(_trained(model)), "metrics": MetricRecord({"num-examples": examples})}
    return Message(RecordDict(reply), reply_to=message)


@cache
def _kept(work: bytes, threads: int) -> tuple[Arena, nn.Module]:
    """Makes an actor's model and data, once."""
    torch.set_num_threads(threads)
    arena = Arena(pickle.loads(work))
    return arena, arena.model()


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
