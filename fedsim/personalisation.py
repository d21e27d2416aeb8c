"""Clients evaluated on examples of their own: with the server's parameters, with parts of their own, and trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from fedsim.bad_clients import judge
from fedsim.briefing import Briefing, below, clients_of, named, tell
from fedsim.client import Trained
from fedsim.experiment import Experiment
from fedsim.jobs import gradient_mask, personal_job
from fedsim.method import Plan, ServerState, Shared
from fedsim.transport import Workers

FEW = 20
"""How many clients train on before they are evaluated: their vectors are held that long."""


def evaluate_clients(
    experiment: Experiment, state: ServerState, vector: Tensor, round: int, workers: Workers
) -> dict[str, float]:
    """Evaluates clients on their own examples. Every worker must call it.

    Args:
        experiment: the run.
        state: the server's, which holds what clients keep.
        vector: (P,), the main view.
        round: after so many steps.
        workers: who shares the work.

    Returns:
        held_out/METRIC and clients/METRIC; personal/METRIC after training on, where that was asked for. Nothing where
        no examples are held out.
    """
    evaluator, method = experiment.client_evaluator, experiment.method
    if evaluator is None:
        return {}
    metrics = evaluator.evaluate(vector, workers)
    if not (experiment.evaluation.local_epochs or method.personal_parts):
        return metrics
    briefing = _brief(experiment, state, evaluator.clients, round, workers)
    mine = range(workers.rank, len(evaluator.clients), workers.count)
    if method.personal_parts:
        own = ((at, method.personal(briefing.shared, vector, briefing.clients[at])) for at in mine)
        metrics |= evaluator.evaluate_each("clients", own, workers)
    if experiment.evaluation.local_epochs:
        trained = _train_on(experiment, briefing, evaluator.clients, mine, vector)
        metrics |= evaluator.evaluate_each("personal", ((t.job.position, t.vector) for t in trained), workers)
    return metrics


def _brief(
    experiment: Experiment, state: ServerState, clients: Sequence[int], round: int, workers: Workers
) -> Briefing:
    """Tells every worker what these clients know and keep, and the rank that they work on."""
    method, ranks, known = experiment.method, [], {}
    if workers.is_server:
        known = named("shared", method.known(state))
        plans = [method.plan(state, max(1, round), client) for client in clients]
        ranks = [plan.lora_rank if plan else 0 for plan in plans]
    facts, found = tell(state, {"ranks": ranks}, known, workers, clients if method.personal_parts else ())
    shared = Shared(round, state.seed, state.layout, state.initial, below("shared", found))
    held = clients_of(facts, found) if method.personal_parts else [state.client(-1)] * len(clients)
    return Briefing(shared, [Plan(lora_rank=rank) for rank in facts["ranks"]], held)


def _train_on(
    experiment: Experiment, briefing: Briefing, clients: Sequence[int], positions: Sequence[int], vector: Tensor
) -> Iterator[Trained]:
    """Trains clients on from the main view; a few are held at a time."""
    shared = briefing.shared
    plans = {briefing.plan(at) for at in positions}
    masks = {plan: gradient_mask(experiment.method, shared, plan, vector) for plan in plans}
    for first in range(0, len(positions), FEW):
        jobs = [
            personal_job(experiment, briefing, at, clients[at], vector, masks[briefing.plan(at)])
            for at in positions[first : first + FEW]
        ]
        # All of the few first, as an evaluation between two of them would load into what the trainer is using.
        for trained in list(experiment.trainer.train(jobs)):
            judged = judge(trained, experiment.run.on_bad_client, None)
            yield judged.trained or replace(trained, vector=trained.job.start)  # as it was before it trained on
