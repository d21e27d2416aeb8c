"""Clients evaluated with parts of their own and after training on: against plain loops over clients."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import personalisation
from fedsim.client import Trained, Trainer
from fedsim.client_evaluation import ClientEvaluator
from fedsim.evaluation import Evaluator
from fedsim.experiment import Experiment
from fedsim.method import ClientJob, ClientState, Method, Plan, ServerState, Shared
from fedsim.options import EvaluationOptions
from fedsim.personalisation import evaluate_clients
from fedsim.server import initial_state
from fedsim.simulation import run_round
from fedsim.tiers import rank_slice
from methods.adapter_lth import AdapterLTH
from methods.fed_sparsify_global import FedSparsifyGlobal
from methods.federated_select import FederatedSelect
from methods.flex_lora import FlexLoRA
from methods.het_lora import HetLoRA
from methods.sparse_adapter import SparseAdapter
from methods.spdst import SPDST
from tests import tiny

ROWS = {0: np.array([30, 31, 32, 33]), 2: np.array([34, 35]), 3: np.array([36, 37, 38]), 4: np.array([39])}
TRAINED_ON = EvaluationOptions(held_out=0.2, local_epochs=2)
ENDS = ("", "_worst_10", "_best_10")


@dataclass
class Own(Method):
    """Every client has its own head, which it keeps as what is added to the server's."""

    personal_parts = True
    lora_rank: int = 2

    def plan(self, state: ServerState, round: int, client: int) -> Plan | None:
        return None if client == 3 else Plan(lora_rank=1 + client % 2, since=round)

    def personal(self, shared: Shared, vector: Tensor, client: ClientState) -> Tensor:
        return vector + client.tensors.get("shift", torch.zeros_like(vector))


@dataclass
class Same(Own):
    """As Own, and nobody keeps anything."""

    personal_parts = False


@dataclass
class Watched:
    """A trainer that remembers what it trained."""

    trainer: Trainer
    done: list[Trained]

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        for trained in self.trainer.train(jobs):
            self.done.append(trained)
            yield trained


@dataclass
class Scene:
    """A run whose clients 0 and 2 keep something."""

    built: tiny.Tiny
    experiment: Experiment
    state: ServerState
    done: list[Trained]
    vector: Tensor

    def evaluate(self) -> dict[str, float]:
        return evaluate_clients(self.experiment, self.state, self.vector, 3, tiny.ONE_WORKER)

    def accuracy(self, client: int, vector: Tensor) -> float:
        """By hand."""
        self.built.parameters.load(vector)
        self.built.model.eval()
        data, rows = self.built.data.train, ROWS[client]
        with torch.no_grad():
            logits = self.built.model(pixel_values=data["pixel_values"][rows]).logits
        return (logits.argmax(1) == data["labels"][rows]).double().mean().item()

    def own(self, client: int) -> Tensor:
        return self.vector + self.state.client(client).tensors.get("shift", torch.zeros_like(self.vector))


def scene(method: Method, evaluation: EvaluationOptions) -> Scene:
    built = tiny.build(method)
    evaluator = Evaluator(built.model, built.parameters, built.module.task, built.train, 4, nullcontext)
    done: list[Trained] = []
    experiment = tiny.experiment(
        built,
        [5, 0, 9, 6, 7],
        trainer=Watched(built.sequential(), done),
        evaluation=evaluation,
        client_evaluator=ClientEvaluator(evaluator, ROWS, tiny.CPU),
    )
    state = initial_state(experiment)
    for client, label in ((0, 2), (2, 0)):
        # The last three entries are the bias of the three classes: both clients see one class in everything.
        shift = torch.zeros(len(built.vector))
        shift[-3 + label] = 50.0
        state.clients[client] = ClientState(2, {"shift": shift})
    return Scene(built, experiment, state, done, built.start())


def require_distribution(found: dict[str, float], view: str, alone: list[float]) -> None:
    expected = (np.mean(alone), min(alone), max(alone))  # a tenth of four clients is at least one
    assert [found[f"{view}/accuracy{end}"] for end in ENDS] == pytest.approx(expected)


def test_without_held_out_examples_there_is_nothing_to_evaluate() -> None:
    made = scene(Own(), EvaluationOptions())
    made.experiment = tiny.experiment(made.built, [5, 0, 9, 6, 7])
    assert made.evaluate() == {}


def test_clients_are_evaluated_with_their_own_parts() -> None:
    """Who keeps nothing has the main view; the examples of all together are the main view's."""
    made = scene(Own(), EvaluationOptions(held_out=0.2))
    found = made.evaluate()
    alone = [made.accuracy(client, made.own(client)) for client in ROWS]
    plain = [made.accuracy(client, made.vector) for client in ROWS]
    assert alone != plain
    require_distribution(found, "clients", alone)
    sizes = [len(rows) for rows in ROWS.values()]
    assert found["held_out/accuracy"] == pytest.approx(np.average(plain, weights=sizes))
    assert not any(name.startswith("personal/") for name in found)
    assert made.done == []


def test_where_nobody_has_parts_of_its_own_what_is_kept_is_not_used() -> None:
    made = scene(Same(), EvaluationOptions(held_out=0.2))
    plain = [made.accuracy(client, made.vector) for client in ROWS]
    assert plain != [made.accuracy(client, made.own(client)) for client in ROWS]
    require_distribution(made.evaluate(), "clients", plain)


@pytest.mark.parametrize("method", [Own, Same])
def test_clients_train_on_from_their_own_parts(method: type[Own]) -> None:
    """Each from what it makes of the main view, on its own rows, for the epochs that were asked for."""
    made = scene(method(), TRAINED_ON)
    found = made.evaluate()
    assert [trained.job.client for trained in made.done] == list(ROWS)
    for trained in made.done:
        job, rows = trained.job, made.experiment.partition.of(trained.job.client)
        assert torch.equal(job.start, made.own(job.client) if method is Own else made.vector)
        assert torch.equal(job.reference, job.start)
        assert not torch.equal(trained.vector, job.start)
        seen = np.sort(job.batches[job.batches >= 0])
        assert seen.tolist() == sorted([*rows, *rows])
        assert (job.shared.round, job.shared.tensors) == (3, {})
    alone = [made.accuracy(trained.job.client, trained.vector) for trained in made.done]
    require_distribution(found, "personal", alone)


def test_the_rank_of_a_clients_plan_is_told_and_nothing_else_of_it() -> None:
    """A client that would be dropped is evaluated like any other."""
    made = scene(Own(), TRAINED_ON)
    made.evaluate()
    assert {trained.job.client: trained.job.plan for trained in made.done} == {
        0: Plan(lora_rank=1),
        2: Plan(lora_rank=1),
        3: Plan(),
        4: Plan(lora_rank=1),
    }


def test_evaluating_changes_nothing_of_the_run() -> None:
    made = scene(Own(), TRAINED_ON)
    vector = made.state.vector.detach().clone()
    kept = {client: held.tensors["shift"].clone() for client, held in made.state.clients.items()}
    rounds = {client: held.round for client, held in made.state.clients.items()}
    first = made.evaluate()
    assert torch.equal(made.state.vector, vector)
    assert {client: held.round for client, held in made.state.clients.items()} == rounds
    assert all(torch.equal(made.state.clients[client].tensors["shift"], shift) for client, shift in kept.items())
    assert made.evaluate() == first


def test_how_many_are_held_at_a_time_is_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clients, three at a time: the first are evaluated before the last has trained."""
    made = scene(Own(), TRAINED_ON)
    expected = made.evaluate()
    monkeypatch.setattr(personalisation, "FEW", 3)
    assert made.evaluate() == expected
    vectors = {trained.job.client: trained.vector for trained in made.done[:4]}
    for trained in made.done[4:]:
        assert torch.equal(trained.vector, vectors[trained.job.client])


@pytest.mark.parametrize(
    "method",
    [
        SparseAdapter(lora_rank=2),
        AdapterLTH(lora_rank=2, prune_fraction=0.5),
        FedSparsifyGlobal(prune_fraction=0.5),
        SPDST(density=0.5),
        FederatedSelect(lora_rank=2),
        FlexLoRA(lora_rank=4, tiers=3),
        HetLoRA(lora_rank=4, tiers=3),
    ],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("rounds", [1, 3])
def test_who_trains_on_stays_within_its_mask_and_its_rank(method: Method, rounds: int) -> None:
    """No pruned entry comes back, and no client has ranks that it could not hold."""
    made = scene(method, EvaluationOptions(held_out=0.2, local_epochs=1))
    made.state.clients.clear()
    for round in range(1, rounds + 1):
        run_round(made.experiment, made.state, round, tiny.ONE_WORKER, None)
    made.done.clear()
    made.vector = next(iter(method.views(made.state).values()))
    made.evaluate()
    assert [trained.job.client for trained in made.done] == list(ROWS)
    known, sizes = method.known(made.state), set()
    for trained in made.done:
        held = torch.ones_like(trained.vector)
        if trained.job.plan.lora_rank:
            held = torch.zeros_like(held).index_fill(0, rank_slice(made.state.layout, trained.job.plan.lora_rank), 1)
        elif known:
            held = torch.zeros_like(held).index_fill(0, known["kept"], 1)
        assert not (trained.vector * (1 - held)).any()
        assert not torch.equal(trained.vector, trained.job.start)
        sizes.add(int(held.sum()))
    assert len(sizes) > 1 if trained.job.plan.lora_rank else bool(known) or rounds == 1
