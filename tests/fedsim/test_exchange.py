"""What hooks want to send against the bytes that travel: supports, what goes beside, and error feedback."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsim.checkpoint import newest_checkpoint
from fedsim.client import Trained
from fedsim.codec import HEADER_BYTES, PayloadError, encode, values_in
from fedsim.errors import TrainingError
from fedsim.exchange import RESIDUAL, Exchange, Sent
from fedsim.history import History
from fedsim.method import (
    Aggregate,
    Arrived,
    ClientJob,
    Download,
    Mean,
    Method,
    Plan,
    ServerState,
    Shared,
    Upload,
)
from fedsim.options import CommunicationOptions, RunOptions
from fedsim.progress import Progress
from fedsim.reporting import RunFiles
from fedsim.simulation import initial_state, run_round, simulate
from fedsim.sparse import IndexSet, SparseVector
from methods.flasc import FLASC
from tests import tiny

LENGTH = 100
SUPPORT = torch.arange(5, 95, 9)  # 10 of 100
VECTOR = torch.linspace(-1, 1, LENGTH, dtype=torch.float64)
EXACT = CommunicationOptions(value_dtype="float64")
FEEDBACK = CommunicationOptions(value_dtype="float64", error_feedback=True)


@cache
def any_job() -> ClientJob:
    return tiny.build().job(0, 4)


def trained(update: list[float] | Tensor, state: dict[str, Tensor] | None = None, density: float = 1.0) -> Trained:
    """A client that moved by minus an update, from 10 everywhere."""
    moved = torch.as_tensor(update, dtype=torch.float64)
    server = tiny.server_state([10.0] * len(moved))
    start = server.vector.detach()
    plan = Plan(upload_density=density)
    job = replace(any_job(), plan=plan, shared=tiny.shared_of(server), start=start, reference=start, state=state or {})
    return Trained(job, start - moved, {})


def received(exchange: Exchange, sent: Sent, length: int, support: Tensor | None = None) -> list[float]:
    """What the server makes of a client's message."""
    update, _, _ = exchange.read_upload(sent.payload, support, torch.zeros(length, dtype=torch.float64))
    return update.to_dense().tolist()


# Supports, and what travels beside.


@pytest.mark.parametrize("kind", ["dense", "at the support"])
def test_a_support_costs_no_byte_of_index(kind: str) -> None:
    values = SparseVector.dense(VECTOR) if kind == "dense" else SparseVector.at(VECTOR, SUPPORT)
    exchange = Exchange(EXACT, LENGTH)
    message = exchange.write_download(Download(values), SUPPORT, "the download")
    assert len(message) == HEADER_BYTES + 8 * 10
    assert values_in(message) == 10
    found = exchange.read_download(message, SUPPORT, VECTOR).values
    assert found.indices is not None
    assert found.indices.tolist() == SUPPORT.tolist()
    assert torch.equal(found.values, VECTOR[SUPPORT])


def test_some_entries_of_a_support_are_indexed_among_its_own() -> None:
    """Three of ten places fill at most two bytes, where three of a hundred would fill more."""
    some = SUPPORT[[0, 4, 9]]
    exchange = Exchange(EXACT, LENGTH)
    message = exchange.write_download(Download(SparseVector.at(VECTOR, some)), SUPPORT, "the download")
    assert HEADER_BYTES + 24 < len(message) <= HEADER_BYTES + 24 + 2
    found = exchange.read_download(message, SUPPORT, VECTOR).values
    assert torch.equal(found.to_dense(), SparseVector.at(VECTOR, some).to_dense())
    assert len(message) < len(exchange.write_download(Download(SparseVector.at(VECTOR, some)), None, "the download"))


def test_an_entry_outside_its_support_is_refused() -> None:
    """Nobody could tell where it belongs; the method that sends it is wrong."""
    with pytest.raises(ValueError, match="1 of 1 entries lie outside the 10 that may travel"):
        Exchange(EXACT, LENGTH).write_download(
            Download(SparseVector.at(VECTOR, torch.tensor([6]))), SUPPORT, "the download"
        )


def test_what_goes_beside_is_paid_for_and_comes_back() -> None:
    beside = (b"the seed", IndexSet(LENGTH, SUPPORT), SparseVector.dense(torch.tensor([1.0, 2.0])))
    exchange = Exchange(CommunicationOptions(), LENGTH)
    whole = Download(SparseVector.dense(VECTOR), beside)
    message = exchange.write_download(whole, None, "the download")
    alone = exchange.write_download(replace(whole, beside=()), None, "the download")
    assert len(message) - len(alone) == sum(len(encode(part)) for part in beside)
    found = exchange.read_download(message, None, torch.zeros(LENGTH)).beside
    assert found[0] == b"the seed"
    assert isinstance(found[1], IndexSet)
    assert found[1].indices.tolist() == SUPPORT.tolist()
    assert isinstance(found[2], SparseVector)
    assert found[2].values.tolist() == [1.0, 2.0]


def test_nothing_that_may_travel_is_no_message() -> None:
    """Not even a header; where something goes beside it, there is one."""
    none = torch.empty(0, dtype=torch.int64)
    exchange = Exchange(EXACT, LENGTH)
    nothing = Download(SparseVector.at(VECTOR, none))
    assert exchange.write_download(nothing, none, "the download") == b""
    assert exchange.read_download(b"", none, VECTOR).values.to_dense().tolist() == [0.0] * LENGTH
    message = exchange.write_download(replace(nothing, beside=(b"seed",)), none, "the download")
    assert len(message) == 2 * HEADER_BYTES + 4
    found = exchange.read_download(message, none, VECTOR)
    assert found.beside == (b"seed",)
    assert found.values.to_dense().tolist() == [0.0] * LENGTH


def test_a_message_begins_with_values() -> None:
    with pytest.raises(PayloadError, match="begins with values of P"):
        Exchange(EXACT, LENGTH).read_download(encode(b"seed"), None, VECTOR)
    with pytest.raises(PayloadError, match="begins with values of P"):
        Exchange(EXACT, LENGTH).read_upload(b"", None, VECTOR)


@pytest.mark.parametrize("support", [None, torch.arange(7)])
def test_a_vector_of_another_length_is_refused(support: Tensor | None) -> None:
    """One entry of four thousand million is 33 bytes; made whole, 16 GB."""
    message = encode(SparseVector(2**32 - 1, torch.ones(1), torch.tensor([5])))
    with pytest.raises(PayloadError, match=f"expected one of {LENGTH if support is None else 7}"):
        Exchange(EXACT, LENGTH).read_upload(message, support, VECTOR)


def test_values_come_in_the_servers_dtype() -> None:
    exchange = Exchange(CommunicationOptions(value_dtype="float16"), 2)
    message = exchange.write_download(Download(SparseVector.dense(torch.tensor([0.5, 1 / 3]))), None, "the download")
    found = exchange.read_download(message, None, torch.zeros(2, dtype=torch.float64)).values.values
    assert found.dtype == torch.float64
    assert found.tolist() == [0.5, 0.333251953125]


def test_the_message_is_named_where_its_values_do_not_fit() -> None:
    exchange = Exchange(CommunicationOptions(value_dtype="float16"), 3)
    with pytest.raises(TrainingError, match=r"^the upload of client 7: 1 of 3 values are not finite as float16"):
        exchange.send_upload(Method(), trained([1.0, 1e6, 2.0]), 4, "the upload of client 7")


@dataclass
class Fixed(Method):
    """Sends what it was made with."""

    given: Upload | None = None
    support: Tensor | None = None

    def upload_support(self, shared: Shared, plan: Plan) -> Tensor | None:
        return self.support

    def upload(self, job: ClientJob, trained: Tensor) -> Upload:
        return self.given or super().upload(job, trained)


def test_an_upload_says_how_many_examples_there_were_and_leaves_its_state_at_home() -> None:
    kept = {"own": torch.tensor([5.0])}
    upload = Upload(SparseVector.dense(torch.tensor([1.0, 2.0])), (b"rank",), kept)
    exchange = Exchange(EXACT, 2)
    sent = exchange.send_upload(Fixed(given=upload), trained([0.0, 0.0]), 37, "the upload")
    assert sent.state == kept
    update, beside, examples = exchange.read_upload(sent.payload, None, torch.zeros(2))
    assert (update.values.tolist(), beside, examples) == ([1.0, 2.0], (b"rank",), 37)
    assert len(sent.payload) == 2 * HEADER_BYTES + 16 + 4


@pytest.mark.parametrize("options", [EXACT, FEEDBACK])
def test_no_update_is_no_message(options: CommunicationOptions) -> None:
    kept = {"own": torch.tensor([5.0])}
    sent = Exchange(options, 2).send_upload(Fixed(given=Upload(None, state=kept)), trained([1.0, 2.0]), 4, "the upload")
    assert (sent.payload, sent.state) == (b"", kept)


def test_what_was_owed_before_a_round_without_a_message_is_still_owed() -> None:
    before = {RESIDUAL: torch.tensor([3.0, 0.0], dtype=torch.float64)}
    silent = Fixed(given=Upload(None))
    sent = Exchange(FEEDBACK, 2).send_upload(silent, trained([1.0, 2.0], before), 4, "the upload")
    assert (sent.payload, list(sent.state)) == (b"", [RESIDUAL])
    assert sent.state[RESIDUAL].tolist() == [3.0, 0.0]


# Error feedback.


def test_error_feedback_by_hand() -> None:
    """One entry of four travels each round, the largest of what is new and what is owed."""
    method, exchange = FLASC(upload_density=0.25), Exchange(FEEDBACK, 4)
    rounds = [
        ([4.0, 3.0, 2.0, 1.0], [4.0, 0, 0, 0], [0, 3.0, 2.0, 1.0]),
        ([0.0, 1.0, 4.0, 1.0], [0, 0, 6.0, 0], [0, 4.0, 0, 2.0]),
        ([1.0, 0.0, 0.0, 3.0], [0, 0, 0, 5.0], [1.0, 4.0, 0, 0]),
        ([0.0, -4.0, 0.0, 0.0], [1.0, 0, 0, 0], [0, 0, 0, 0]),
    ]
    state: dict[str, Tensor] = {}
    total = torch.zeros(4, dtype=torch.float64)
    for update, travels, owed in rounds:
        sent = exchange.send_upload(method, trained(update, state, 0.25), 4, "the upload")
        state = sent.state
        assert values_in(sent.payload) == 1
        assert received(exchange, sent, 4) == travels
        assert {name: kept.tolist() for name, kept in state.items()} == ({RESIDUAL: owed} if any(owed) else {})
        total += torch.tensor(travels)
    assert total.tolist() == [5.0, 0.0, 6.0, 5.0]  # the sum of all updates, as nothing is owed in the end


def test_what_rounding_cuts_off_is_owed_too() -> None:
    """bfloat16 has eight bits: of 1 + 2^-9 it carries 1, until enough of the rest has come together."""
    exchange = Exchange(CommunicationOptions(value_dtype="bfloat16", error_feedback=True), 1)
    state: dict[str, Tensor] = {}
    total = 0.0
    for number in range(1, 9):
        sent = exchange.send_upload(Method(), trained([1 + 2.0**-9], state), 4, "the upload")
        (arrived,) = received(exchange, sent, 1)
        total, state = total + arrived, sent.state
        owed = state[RESIDUAL].item() if state else 0.0
        assert total + owed == number * (1 + 2.0**-9)
        assert abs(owed) <= 2.0**-8
    assert total == 8 + 8 * 2.0**-9


def test_nothing_is_owed_without_error_feedback() -> None:
    """And a residual that lies around, as a run was resumed without it, is not sent."""
    exchange = Exchange(EXACT, 4)
    before = {RESIDUAL: torch.full((4,), 9.0, dtype=torch.float64)}
    sent = exchange.send_upload(FLASC(upload_density=0.25), trained([4.0, 3, 2, 1], before, 0.25), 4, "the upload")
    assert received(exchange, sent, 4) == [4.0, 0, 0, 0]
    assert sent.state == {}


def test_a_methods_own_state_stays_beside_what_is_owed() -> None:
    own = {"own": torch.tensor([5.0])}
    given = Upload(SparseVector.at(torch.tensor([4.0, 3.0]), torch.tensor([0])), state=own)
    sent = Exchange(FEEDBACK, 2).send_upload(Fixed(given=given), trained([4.0, 3.0]), 4, "the upload")
    assert set(sent.state) == {"own", RESIDUAL}
    assert sent.state["own"] is own["own"]
    assert sent.state[RESIDUAL].tolist() == [0.0, 3.0]


def test_what_need_not_travel_is_not_owed() -> None:
    """Entries outside the support may be the client's own parts, which nobody waits for."""
    exchange, support = Exchange(FEEDBACK, 4), torch.tensor([1, 2])
    upload = Upload(SparseVector.at(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1])))
    sent = exchange.send_upload(Fixed(given=upload, support=support), trained([4.0, 3, 2, 1]), 4, "the upload")
    assert received(exchange, sent, 4, support) == [0, 3.0, 0, 0]
    assert sent.state[RESIDUAL].tolist() == [0, 0, 2.0, 0]
    again = exchange.send_upload(Fixed(support=support), trained([1.0, 1, 1, 1], sent.state), 4, "the upload")
    assert received(exchange, again, 4, support) == [0, 1.0, 3.0, 0]


def test_what_is_owed_outlives_a_round_that_asks_for_something_else() -> None:
    """Entry 2 is owed while rounds ask for 1 and 2, then for 0, then for 2, in which it is sent with what is new."""
    exchange, first = Exchange(FEEDBACK, 3), torch.tensor([1, 2])
    upload = Upload(SparseVector.at(torch.tensor([4.0, 3.0, 2.0]), torch.tensor([1])))
    sent = exchange.send_upload(Fixed(given=upload, support=first), trained([4.0, 3, 2]), 4, "the upload")
    assert sent.state[RESIDUAL].tolist() == [0, 0, 2.0]
    other = torch.tensor([0])
    sent = exchange.send_upload(Fixed(support=other), trained([5.0, 7, 7], sent.state), 4, "the upload")
    assert received(exchange, sent, 3, other) == [5.0, 0, 0]
    assert sent.state[RESIDUAL].tolist() == [0, 0, 2.0]
    last = torch.tensor([2])
    sent = exchange.send_upload(Fixed(support=last), trained([0.0, 0, 1], sent.state), 4, "the upload")
    assert received(exchange, sent, 3, last) == [0, 0, 3.0]
    assert sent.state == {}


@dataclass
class Recorded(FLASC):
    """FLASC that remembers what arrived and what was trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrived: dict[int, list[Tensor]] = defaultdict(list)
        self.updates: dict[int, list[Tensor]] = defaultdict(list)

    def aggregate(self, state: ServerState, shared: Shared) -> Aggregate:
        arrived = self.arrived

        class Remembering(Mean):
            def add(self, upload: Arrived) -> None:
                arrived[upload.client].append(upload.update.to_dense())
                super().add(upload)

        return Remembering(state.layout.length, state.vector.dtype, state.vector.device)


def experiment(options: CommunicationOptions, rounds: int) -> tuple[tiny.Experiment, Recorded]:
    method = Recorded(lora_rank=2, upload_density=1 / 16)
    built = tiny.build(method, dtype=torch.float64)
    run = RunOptions(rounds=rounds, cohort_size=3, evaluate_every_rounds=9, checkpoint_every_rounds=2)
    made = tiny.experiment(built, [5, 0, 9, 6, 7], communication=options, run=run)
    train = made.trainer.train

    def remember(jobs: list[ClientJob]) -> list[Trained]:
        done = list(train(jobs))
        for one in done:
            method.updates[one.job.client].append(one.job.reference - one.vector)
        return done

    made.trainer.train = remember  # type: ignore[assignment,method-assign]
    return made, method


def test_a_clients_residual_is_its_own() -> None:
    """Over rounds, what arrived of a client and what it still owes add up to what it did, client by client."""
    made, method = experiment(FEEDBACK, 6)
    state = initial_state(made)
    for round in range(1, 7):
        run_round(made, state, round, tiny.ONE_WORKER, None)
    assert max(map(len, method.arrived.values())) > 2
    assert sorted(state.clients) == sorted(method.arrived) == [0, 2, 3, 4]
    for client, arrived in method.arrived.items():
        owed = state.clients[client].tensors[RESIDUAL]
        assert owed.count_nonzero() > len(owed) // 3
        torch.testing.assert_close(sum(arrived) + owed, sum(method.updates[client]), rtol=0, atol=1e-14)
        assert all(upload.count_nonzero() == len(owed) // 16 for upload in arrived)


def test_nobody_keeps_anything_without_it() -> None:
    made, _ = experiment(EXACT, 2)
    state = initial_state(made)
    run_round(made, state, 1, tiny.ONE_WORKER, None)
    assert state.clients
    assert all(held.tensors == {} for held in state.clients.values())


def play(folder: Path, rounds: int, options: CommunicationOptions) -> Tensor:
    """A run, from its newest checkpoint where there is one; returns the server's P."""
    folder.mkdir(exist_ok=True)
    checkpoint, _ = newest_checkpoint(folder / "checkpoint")
    history = History(**checkpoint.meta["history"]) if checkpoint else History()
    with RunFiles(folder, history, checkpoint.round if checkpoint else 0, Progress(None, "run", rounds)) as files:
        simulate(experiment(options, rounds)[0], tiny.ONE_WORKER, files, checkpoint)
    last, _ = newest_checkpoint(folder / "checkpoint")
    assert last is not None
    assert last.round == rounds
    return last.tensors["vector"]


def test_a_resumed_run_owes_what_it_owed(tmp_path: Path) -> None:
    whole = play(tmp_path / "whole", 5, FEEDBACK)
    play(tmp_path / "parts", 2, FEEDBACK)
    assert torch.equal(play(tmp_path / "parts", 5, FEEDBACK), whole)
    assert not torch.equal(play(tmp_path / "without", 5, EXACT), whole)


def test_who_sent_all_of_it_keeps_nothing() -> None:
    """A dense update in the dtype of P leaves nothing over, and no vector of zeros at home."""
    exchange = Exchange(CommunicationOptions(error_feedback=True, value_dtype="float64"), 4)
    sent = exchange.send_upload(Method(), trained([1.0, -2.0, 0.5, 3.0]), 1, "the upload")
    assert sent.payload
    assert not sent.state
