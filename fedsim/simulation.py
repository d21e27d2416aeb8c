"""The whole life of a run: resume, then per round sample, assign, download, train, upload, gather, aggregate, step.

Every worker runs the same function. The server worker alone holds the server's state and the files; all others know
of the round only what travelled to them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.checkpoint import Checkpoint, save_checkpoint
from fedsim.client import Trained
from fedsim.codec import VALUE_DTYPES, decode, encode
from fedsim.errors import TrainingError
from fedsim.evaluation import Evaluation
from fedsim.experiment import Experiment
from fedsim.jobs import personal_job, round_job
from fedsim.ledger import Entry
from fedsim.method import Plan, ServerState
from fedsim.options import CommunicationOptions
from fedsim.reporting import RunFiles
from fedsim.sampling import local_steps, sample_cohort
from fedsim.schedule import assign
from fedsim.seeding import Purpose, generator
from fedsim.server import initial_state, restore_state, snapshot
from fedsim.sparse import SparseVector
from fedsim.transport import Workers

PERSONAL_CLIENTS = 20
"""How many clients train on before they are evaluated: their vectors are held that long."""


@dataclass(frozen=True)
class Result:
    """Where a run ended.

    Attributes:
        vector: (P,), the main view of the last round.
        evaluation: what it is worth.
    """

    vector: Tensor
    evaluation: Evaluation


def simulate(experiment: Experiment, workers: Workers, files: RunFiles | None, checkpoint: Checkpoint | None) -> Result:
    """Runs an experiment from its start, or from a checkpoint, to its last round.

    Args:
        experiment: the run.
        workers: the processes that share it; all call this.
        files: where the server worker writes; None on the others.
        checkpoint: where the server worker goes on; None on the others, and for a new run.

    Returns:
        The main view of the last round, on every worker.

    Raises:
        TrainingError: training diverged, or a payload cannot be encoded; it names client and round.
        WorkerLost: another worker stopped.
    """
    state = initial_state(experiment.parameters, experiment.server)
    if checkpoint is not None:
        restore_state(state, checkpoint)
    done = int(workers.broadcast([b"%d" % (checkpoint.round if checkpoint else 0)])[0])
    for round in range(done, experiment.run.rounds + 1):
        last = round == experiment.run.rounds
        if round > done:
            run_round(experiment, state, round, workers, files)
            if files is not None and (last or round % experiment.run.checkpoint_every_rounds == 0):
                save_checkpoint(files.folder / "checkpoint", snapshot(state, round, files.history()))
        # Behind the checkpoint, so that a run with more rounds goes on as if this had never been the last one.
        if last or round % experiment.run.evaluate_every_rounds == 0:
            result = evaluate(experiment, state, round, workers, files)
    return result


def run_round(experiment: Experiment, state: ServerState, round: int, workers: Workers, files: RunFiles | None) -> None:
    """Runs one round, from the cohort to the server's step.

    Args:
        experiment: the run.
        state: the server's; only the server worker's moves on.
        round: 1 to the number of rounds.
        workers: the processes that share it.
        files: the server worker's.
    """
    method, partition, run, client = experiment.method, experiment.partition, experiment.run, experiment.client
    cohort = sample_cohort(generator(run.seed, Purpose.COHORT, round), partition.clients, run.cohort_size)
    examples = [partition.examples(member) for member in cohort]
    plans = [method.plan(round, member) for member in cohort]
    steps = [local_steps(n, client.batch_size, client.local_epochs, client.max_steps) for n in examples]
    owners = assign(steps, workers.count)
    if workers.is_server:
        method.prepare(state, round)

    # Down: encoded once for all clients of a plan. Who has no examples takes part with weight zero and pays no bytes.
    downloads = _send_down(experiment, state, round, [p for p, n in zip(plans, examples, strict=True) if n], workers)
    starts = {plan: decode(payload)[0].to_dense().to(state.vector) for plan, payload in downloads.items()}
    mine = [at for at, owner in enumerate(owners) if owner == workers.rank and examples[at]]
    jobs = [round_job(experiment, round, at, cohort[at], plans[at], starts[plans[at]]) for at in mine]

    # Local work, and up: what a client logged travels beside its upload, outside the ledger.
    uploads: dict[int, bytes] = {}
    logs: dict[int, bytes] = {}
    for trained in experiment.trainer.train(jobs):
        at = trained.job.position
        _require_finite(trained.vector, f"the update of client {cohort[at]} in round {round}")
        upload = method.upload(trained.job, trained.vector)
        what = f"the upload of client {cohort[at]} in round {round}"
        uploads[at] = _encode(experiment.communication, upload, what, examples[at])
        logs[at] = json.dumps(trained.logged).encode()
    logged = dict(workers.gather(logs, owners))

    aggregate = method.aggregate(state)
    for at, payload in workers.gather(uploads, owners):
        if payload:
            upload, count = decode(payload)
            aggregate.add(upload, count if experiment.server.weighting == "examples" else 1)
        if files is not None:
            download = downloads[plans[at]] if payload else b""
            entry = Entry.of(round, cohort[at], owners[at], examples[at], payload, download)
            files.trained(entry, json.loads(logged[at] or b"{}"))

    update = aggregate.finish()
    if update is not None:  # a cohort without any examples is a round without a step
        method.step(state, update)
        _require_finite(state.vector, f"the server's parameters after round {round}")
    if files is not None:
        files.round_done(round)


def evaluate(
    experiment: Experiment, state: ServerState, round: int, workers: Workers, files: RunFiles | None
) -> Result:
    """Evaluates every view of the server's state on all workers and reports it.

    Args:
        experiment: the run.
        state: the server's.
        round: after so many steps.
        workers: the processes that share it.
        files: the server worker's.

    Returns:
        The main view.
    """
    views = experiment.method.views(state) if workers.is_server else {}
    sent = [part for name, vector in views.items() for part in (name.encode(), _raw(vector))]
    travelled = workers.broadcast(sent if workers.is_server else None)
    results: dict[str, Result] = {}
    for name, raw in zip(travelled[::2], travelled[1::2], strict=True):
        vector = torch.frombuffer(bytearray(raw), dtype=state.vector.dtype).to(state.vector.device)
        results[name.decode()] = Result(vector, experiment.evaluator.evaluate(vector, workers))
    main, *others = results
    by_class = _by_class(experiment, results[main].evaluation) if experiment.evaluation.per_class else {}
    of_clients = _evaluate_clients(experiment, results[main].vector, round, workers)
    if files is not None:
        metrics = dict(results[main].evaluation.metrics)
        for view in others:
            metrics |= {f"{view}/{name}": value for name, value in results[view].evaluation.metrics.items()}
        files.evaluated(round, metrics | by_class | of_clients)
    return results[main]


def _by_class(experiment: Experiment, evaluation: Evaluation) -> dict[str, float]:
    """The main metric of every class, as class/NAME."""
    values = experiment.evaluator.task.by_class(evaluation.outputs)
    if values is None:
        return {}
    names = experiment.data.label_names or range(len(values))
    return {f"class/{str(name).replace('/', '_')}": value for name, value in zip(names, values.tolist(), strict=True)}


def _evaluate_clients(experiment: Experiment, vector: Tensor, round: int, workers: Workers) -> dict[str, float]:
    """Evaluates clients on their own examples, as the server's parameters are, and after training on from them."""
    evaluator, epochs = experiment.client_evaluator, experiment.evaluation.local_epochs
    if evaluator is None:
        return {}
    metrics = evaluator.evaluate(vector, workers)
    if epochs:
        mine = list(enumerate(evaluator.clients))[workers.rank :: workers.count]
        metrics |= evaluator.evaluate_personal(_personal_vectors(experiment, round, mine, vector), workers)
    return metrics


def _personal_vectors(
    experiment: Experiment, round: int, clients: Sequence[tuple[int, int]], vector: Tensor
) -> Iterator[Trained]:
    """Trains clients, given as (position, client), on from a vector; a few are held at a time."""
    for first in range(0, len(clients), PERSONAL_CLIENTS):
        few = clients[first : first + PERSONAL_CLIENTS]
        jobs = [personal_job(experiment, round, at, client, vector) for at, client in few]
        # All of the few first, as an evaluation between two of them would load into what the trainer is using.
        for trained in list(experiment.trainer.train(jobs)):
            _require_finite(trained.vector, f"client {trained.job.client}, trained on after round {round}")
            yield trained


def _send_down(
    experiment: Experiment, state: ServerState, round: int, plans: Sequence[Plan], workers: Workers
) -> dict[Plan, bytes]:
    """Encodes the download of every distinct plan on the server worker and brings them to all."""
    distinct = list(dict.fromkeys(plans))
    payloads = None
    if workers.is_server:
        vectors, what = [experiment.method.download(state, plan) for plan in distinct], f"the download of round {round}"
        payloads = [_encode(experiment.communication, vector, what) for vector in vectors]
    return dict(zip(distinct, workers.broadcast(payloads), strict=True))


def _encode(options: CommunicationOptions, vector: SparseVector, what: str, examples: int = 0) -> bytes:
    """Encodes a payload; values that its dtype cannot hold end the run."""
    try:
        return encode(vector, options.index_coding, VALUE_DTYPES[options.value_dtype], examples)
    except ValueError as error:
        raise TrainingError(f"{what}: {error}") from error


def _require_finite(vector: Tensor, what: str) -> None:
    """Stops a run that diverged."""
    broken = int((~vector.isfinite()).sum())
    if broken:
        raise TrainingError(f"{what}: {broken} of {len(vector)} values are not finite; lower client.lr or server.lr")


def _raw(vector: Tensor) -> bytes:
    return vector.detach().cpu().numpy().tobytes()
