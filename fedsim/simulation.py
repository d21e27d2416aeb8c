"""The whole life of a run: resume, then per round sample, assign, download, train, upload, gather, aggregate, step.

Every worker runs the same function. The server worker alone holds the server's state and the files; all others know
of the round only what travelled to them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fedsim.bad_clients import Faults, judge
from fedsim.briefing import Briefing, brief, tell
from fedsim.checkpoint import Checkpoint, save_checkpoint
from fedsim.client import Trained
from fedsim.errors import UnsendableError, named
from fedsim.evaluation import Evaluation
from fedsim.exchange import Exchange, Sent
from fedsim.experiment import Experiment
from fedsim.jobs import gradient_mask, require_finite, round_job
from fedsim.ledger import Entry, Travelled
from fedsim.method import Aggregate, Arrived, ClientJob, ClientState, Download, Method, Plan, ServerState, Shared
from fedsim.personalisation import evaluate_clients
from fedsim.reporting import RunFiles
from fedsim.sampling import local_steps, sample_cohort
from fedsim.schedule import waves
from fedsim.seeding import Purpose
from fedsim.server import enter_stage, initial_state, restore_state, snapshot
from fedsim.transport import Workers, pack, unpack


@dataclass(frozen=True)
class Result:
    """Where a run ended.

    Attributes:
        vector: (P,), the main view of the last round.
        evaluation: what it is worth.
    """

    vector: Tensor
    evaluation: Evaluation


def simulate(
    experiment: Experiment,
    workers: Workers,
    files: RunFiles | None,
    checkpoint: Checkpoint | None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Result | None:
    """Runs an experiment from its start, or from a checkpoint, to its last round.

    Args:
        experiment: the run.
        workers: the processes that share it; all call this.
        files: where the server worker writes; None on the others.
        checkpoint: where the server worker goes on; None on the others, and for a new run.
        asked_to_stop: whether this worker is to stop; any worker's word stops all behind the running round.

    Returns:
        The main view of the last round, on every worker; None where the run was stopped before, and saved.

    Raises:
        TrainingError: training diverged, or a payload cannot be encoded; it names client and round.
        WorkerLost: another worker stopped.
    """
    facts, _ = workers.tell({"done": checkpoint.round if checkpoint else 0}, {})
    done, method = facts["done"], experiment.method
    experiment.parameters.activate(method.segments(max(1, done)))
    state = initial_state(experiment)
    if checkpoint is not None:
        restore_state(state, checkpoint)
    for round in range(done, experiment.run.rounds + 1):
        last = round == experiment.run.rounds
        evaluated = last or round % experiment.run.evaluate_every_rounds == 0
        if round > done:
            state = enter_stage(experiment, state, round, workers.is_server)
            with named(f"worker {workers.rank}, round {round}"):
                run_round(experiment, state, round, workers, files)
            stop = workers.any(asked_to_stop())
            saved = last or stop or round % experiment.run.checkpoint_every_rounds == 0
            if files is not None and (saved or evaluated):
                history = files.history()  # without the evaluation, so that a resumed run can make it again
            if files is not None and saved:
                save_checkpoint(files.folder / "checkpoint", snapshot(state, round, history))
            if stop and not last:
                return None
        if evaluated:
            with named(f"worker {workers.rank}, evaluation after round {round}"):
                result = evaluate(experiment, state, round, workers, files)
            if not last and workers.any(asked_to_stop()):
                if files is not None and round > done and not saved:
                    save_checkpoint(files.folder / "checkpoint", snapshot(state, round, history))
                return None
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
    method, population, run, client = experiment.method, experiment.population, experiment.run, experiment.client
    exchange = Exchange(experiment.communication, state.layout.length)
    draw = experiment.hidden_stream(Purpose.COHORT, round)
    cohort = sample_cohort(draw, population.clients, run.cohort_size, run.cohort_sampling)
    briefing = brief(method, state, round, cohort, workers)
    shared, plans = briefing.shared, briefing.plans

    # Who has no examples, or is dropped, takes part with weight zero: no download, no work, no bytes.
    examples = [population.examples(member) for member in cohort]
    active = {at: plan for at, plan in enumerate(plans) if plan is not None and examples[at]}
    work = [local_steps(n, client.batch_size, client.local_epochs, client.max_steps) for n in examples]
    cut = waves([work[at] if at in active else 0 for at in range(len(cohort))], workers.count, exchange.upload_bound)
    mine = [[at for at in wave.of(workers.rank) if at in active] for wave in cut]

    # Down: encoded once for all clients of a plan.
    downloads = _send_down(experiment, exchange, state, shared, list(active.values()), workers)
    paid = {plan: Travelled.of(message) for plan, message in downloads.items()}
    own_plans = {active[at] for positions in mine for at in positions}
    received = _receive(experiment, exchange, shared, {plan: downloads[plan] for plan in own_plans})
    del downloads

    seconds, faults = 0.0, Faults(round)
    aggregate = _aggregate(experiment, state, shared)
    for wave, positions in zip(cut, mine, strict=True):  # usually one: the whole cohort
        # Local work, and up. What a client logged and what it keeps stand beside its message, outside the ledger.
        jobs = _jobs(experiment, briefing, cohort, positions, received)
        messages, kept = _train(experiment, exchange, jobs, examples)
        at_home = {at: unpack(held, state.vector.device) for at, held in workers.gather(kept, wave) if held}

        for at, payload in workers.gather(messages, wave):
            if payload:
                arrived = _arrived(experiment, exchange, shared, cohort[at], active[at], payload, state.vector)
                seconds += _add(aggregate, arrived)
                del arrived
            told, tensors = at_home.get(at, ({}, {}))
            faults.hear(cohort[at], told)
            if at in active:
                state.clients[cohort[at]] = ClientState(round, tensors)
            if files is not None:
                download, trained_on = (paid[active[at]], examples[at]) if at in active else (Travelled(), 0)
                entry = Entry.of(round, cohort[at], wave.owner(at), trained_on, Travelled.of(payload), download)
                files.trained(entry, told.get("logged", {}))
        messages, payload = {}, b""  # may be whole backbones, and the next wave needs the room

    faults.report(state, len(active), experiment.privacy is not None)
    seconds += _step(method, state, aggregate, round)
    if files is not None:
        files.round_done(round, state.measures, state.notes, seconds)
    state.measures, state.notes = {}, []


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
    names, found = tell(state, {"views": list(views)}, views, workers)
    results = {
        name: Result(found[name], experiment.evaluator.evaluate(found[name], workers)) for name in names["views"]
    }
    main, *others = results
    by_class = _by_class(experiment, results[main].evaluation) if experiment.evaluation.per_class else {}
    of_clients = evaluate_clients(experiment, state, results[main].vector, round, workers)
    if files is not None:
        metrics = dict(results[main].evaluation.metrics)
        for view in others:
            metrics |= {f"{view}/{name}": value for name, value in results[view].evaluation.metrics.items()}
        spent = experiment.privacy.spent(round) if experiment.privacy is not None else {}
        files.evaluated(round, metrics | by_class | of_clients | spent)
    return results[main]


@named("writing the download")
def _send_down(
    experiment: Experiment,
    exchange: Exchange,
    state: ServerState,
    shared: Shared,
    plans: Sequence[Plan],
    workers: Workers,
) -> dict[Plan, bytes]:
    """Encodes the download of every distinct plan on the server worker and brings them to all."""
    method, distinct = experiment.method, list(dict.fromkeys(plans))
    messages = None
    if workers.is_server:
        messages = [
            exchange.write_download(
                method.download(state, shared, plan),
                method.download_support(shared, plan),
                f"the download of round {shared.round}",
            )
            for plan in distinct
        ]
    return dict(zip(distinct, workers.broadcast(messages), strict=True))


@dataclass(frozen=True, eq=False)
class _Received:
    """What the clients of a plan have in common.

    Attributes:
        download: what came down.
        start: (P,), where they start, unless they have parts of their own.
        mask: (P,), what moves, or None.
    """

    download: Download
    start: Tensor
    mask: Tensor | None


@named("reading the download")
def _receive(
    experiment: Experiment, exchange: Exchange, shared: Shared, downloads: Mapping[Plan, bytes]
) -> dict[Plan, _Received]:
    """Decodes the downloads of this worker's clients, once a plan."""
    method, like = experiment.method, experiment.parameters.vector
    received = {}
    for plan, message in downloads.items():
        download = exchange.read_download(message, method.download_support(shared, plan), like)
        start = method.start(shared, download, ClientState())
        received[plan] = _Received(download, start, gradient_mask(method, shared, plan, like))
    return received


@named("laying out local work")
def _jobs(
    experiment: Experiment,
    briefing: Briefing,
    cohort: Sequence[int],
    positions: Sequence[int],
    received: Mapping[Plan, _Received],
) -> list[ClientJob]:
    """Lays out jobs of this worker. Clients of one plan share mask and start, unless they have parts of their own."""
    method, shared = experiment.method, briefing.shared
    jobs = []
    for at in positions:
        found, held = received[briefing.plan(at)], briefing.clients[at]
        start = method.start(shared, found.download, held) if held.tensors else found.start
        jobs.append(round_job(experiment, briefing, at, cohort[at], start, found.mask))
    return jobs


@named("local work")
def _train(
    experiment: Experiment, exchange: Exchange, jobs: Sequence[ClientJob], examples: Sequence[int]
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Trains this worker's clients: by position, the message of each, and what it logged and keeps."""
    messages, kept = {}, {}
    for trained in experiment.trainer.train(jobs):
        job, at = trained.job, trained.job.position
        sent, fault = _send_up(experiment, exchange, trained, examples[at])
        if sent is None:  # it keeps what it had
            messages[at], kept[at] = b"", pack({"fault": fault, "left_out": True}, job.state)
        else:
            messages[at], kept[at] = sent.payload, pack({"logged": trained.logged, "fault": fault}, sent.state)
    return messages, kept


def _send_up(experiment: Experiment, exchange: Exchange, trained: Trained, examples: int) -> tuple[Sent | None, str]:
    """Writes a client's message, unless it is left out, and says what was wrong with its work."""
    run, job = experiment.run, trained.job
    judged = judge(trained, run.on_bad_client, run.max_update_norm)
    if judged.trained is None:
        return None, judged.fault
    whose = f"the upload of client {job.client} in round {job.shared.round}"
    try:
        return exchange.send_upload(experiment.method, judged.trained, examples, whose), judged.fault
    except UnsendableError as error:
        if run.on_bad_client == "fail":
            raise
        return None, error.fault


@named("reading an upload")
def _arrived(
    experiment: Experiment,
    exchange: Exchange,
    shared: Shared,
    client: int,
    plan: Plan,
    payload: bytes,
    like: Tensor,
) -> Arrived:
    """Reads a client's message at the server."""
    support = experiment.method.upload_support(shared, plan)
    update, beside, examples = exchange.read_upload(payload, support, like)
    weight = examples if experiment.server.weighting == "examples" else 1
    return Arrived(client, plan, update, beside, examples, weight)


def _aggregate(experiment: Experiment, state: ServerState, shared: Shared) -> Aggregate:
    """The method's aggregate, or the noisy sum that stands in for it."""
    if experiment.privacy is None:
        return experiment.method.aggregate(state, shared)
    noise = partial(experiment.hidden_stream, Purpose.NOISE, shared.round)
    return experiment.privacy.aggregate(experiment.method, state, shared, noise)


@named("aggregating")
def _add(aggregate: Aggregate, arrived: Arrived) -> float:
    """Adds an upload to what there is, and returns the seconds that this took."""
    started = time.perf_counter()
    aggregate.add(arrived)
    return time.perf_counter() - started


@named("the server's step")
def _step(method: Method, state: ServerState, aggregate: Aggregate, round: int) -> float:
    """Steps the server by what was aggregated, and returns the seconds that this took."""
    started = time.perf_counter()
    update = aggregate.finish()
    if update is not None:  # a cohort that sends nothing is a round without a step
        method.step(state, update)
        require_finite(state.vector, f"the server's parameters after round {round}")
    return time.perf_counter() - started


def _by_class(experiment: Experiment, evaluation: Evaluation) -> dict[str, float]:
    """The main metric of every class, as class/NAME."""
    values = experiment.evaluator.task.by_class(evaluation.outputs)
    if values is None:
        return {}
    names = experiment.data.label_names or range(len(values))
    return {f"class/{str(name).replace('/', '_')}": value for name, value in zip(names, values.tolist(), strict=True)}
