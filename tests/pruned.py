"""What the tests of methods with masks share: a layout by hand, and rounds of the engine that are watched."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from fedsim.client import Trained, Trainer
from fedsim.codec import HEADER_BYTES, encode
from fedsim.ledger import Entry
from fedsim.method import ClientJob, Method, ServerState
from fedsim.options import CommunicationOptions, ServerOptions
from fedsim.parameters import Layout, Place
from fedsim.pruning import PRUNED
from fedsim.server import initial_state
from fedsim.simulation import run_round
from fedsim.sparse import IndexSet
from tests import tiny

A, B, HEAD = [9.0, -8.0, 7.0, -6.0], [0.3, 0.1, -0.2, 0.4], [1.0, -3.0, 2.0, 0.5]
P = A + B + HEAD


def lora_layout() -> Layout:
    """One module's A and B of four entries each, and a head of four."""
    names = (("m.lora_A.weight", "A", "m"), ("m.lora_B.weight", "B", "m"), ("head.weight", "head", "head"))
    return Layout(tuple(Place(name, torch.Size([2, 2]), 4 * at, s, layer) for at, (name, s, layer) in enumerate(names)))


SERVERS = {
    "adam": ServerOptions("adam", lr=0.05, weight_decay=0.1),
    "adamw": ServerOptions("adamw", lr=0.05, weight_decay=0.1),
    "sgd": ServerOptions("sgd", lr=0.5, momentum=0.9, weight_decay=0.1),
    "yogi": ServerOptions("yogi", lr=0.05, weight_decay=0.1),
    "adagrad": ServerOptions("adagrad", lr=0.05, weight_decay=0.1),
}
every_server = pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)


@dataclass
class Watched:
    """A run that is watched: it stands in for its trainer and for its files.

    Attributes:
        trained: every client's work, round by round.
        entries: the ledger.
        notes: what the user was told.
    """

    trainer: Trainer
    trained: list[Trained] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def train(self, jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        for done in self.trainer.train(jobs):
            self.trained.append(done)
            yield done

    @property
    def masks(self) -> dict[int, torch.Tensor]:
        """By round, which entries the clients trained, (P,) bool."""
        found = {}
        for done in self.trained:
            whole = torch.ones(len(done.vector), dtype=torch.bool)
            kept = done.job.shared.tensors.get("kept")
            found[done.job.shared.round] = whole if kept is None else torch.zeros_like(whole).index_fill(0, kept, True)
        return found

    def entered(self, entry: Entry, logged: Mapping[str, float]) -> None:
        self.entries.append(entry)

    def round_done(self, round: int, measures: Mapping[str, float], notes: Sequence[str], seconds: float) -> None:
        self.notes += notes


class Files:
    """What `run_round` knows of a run directory."""

    def __init__(self, watched: Watched) -> None:
        self.trained, self.round_done = watched.entered, watched.round_done


def rounds(
    method: Method, count: int, server: ServerOptions | None = None, backbone: str = "vit"
) -> Iterator[tuple[Watched, ServerState]]:
    """Runs so many rounds of five clients, three at a time, and yields after each."""
    built = tiny.build(method, backbone)
    watched = Watched(built.sequential())
    communication = CommunicationOptions(value_dtype="float32")
    experiment = tiny.experiment(
        built, [5, 4, 9, 6, 7], trainer=watched, server=server or ServerOptions(), communication=communication
    )
    experiment = replace(experiment, run=replace(experiment.run, rounds=count))
    state = initial_state(experiment)
    for round in range(1, count + 1):
        run_round(experiment, state, round, tiny.ONE_WORKER, Files(watched))  # type: ignore[arg-type]
        yield watched, state


def assert_pruned_entries_stay_away(method: Method, count: int, server: ServerOptions) -> list[int]:
    """Runs rounds and checks after each that what was ever pruned is zero, for clients, server and optimiser.

    Returns:
        How many entries were kept in each round.
    """
    gone, kept = torch.zeros(0, dtype=torch.int64), []
    for round, (watched, state) in enumerate(rounds(method, count, server), start=1):
        pruned = state.tensors.get(PRUNED, torch.zeros(state.layout.length, dtype=torch.int32)) > 0
        assert pruned[gone].all()
        gone = pruned.nonzero().squeeze(1)
        kept.append(state.layout.length - len(gone))
        assert not state.vector[gone].any()
        for moment in state.optimizer.state[state.vector].values():
            assert moment.ndim == 0 or not moment[gone].any()
        assert torch.equal(watched.masks[round], ~pruned)
        assert_clients_stay_within(watched)
    return kept


def assert_clients_stay_within(watched: Watched, alive: bool = True) -> None:
    """Checks that clients started from zeros outside of the round's mask, left them there, and moved what is inside.

    Args:
        watched: the run.
        alive: whether anything inside can learn; what a mask without B and head leaves cannot.
    """
    masks = watched.masks
    for done in watched.trained:
        mask = masks[done.job.shared.round]
        assert not done.job.start[~mask].any()
        assert not done.vector[~mask].any()
        assert bool((done.vector != done.job.start)[mask].any()) == (alive or bool(mask.all()))


def index_bytes(mask: torch.Tensor) -> int:
    """What the places of a mask (n,) cost: a header, and the smaller of a bitmask and Rice codes."""
    return len(encode(IndexSet(len(mask), mask.nonzero().squeeze(1))))


def assert_masks_are_paid_once(watched: Watched) -> list[int]:
    """Checks every entry of the ledger: the values that are kept, and of the mask what the client does not know.

    Returns:
        What each entry paid for the mask.
    """
    masks, held, paid = watched.masks, {}, []
    for entry in watched.entries:
        mask = masks[entry.round]
        values = HEADER_BYTES + 4 * int(mask.sum())
        assert entry.upload_bytes == values  # no index, as both ends know the mask
        assert entry.upload_values == entry.download_values == int(mask.sum())
        known = held.get(entry.client, torch.ones_like(mask))
        left = mask[known]
        news = 0 if left.all() else min(index_bytes(left), index_bytes(~left))
        assert entry.download_bytes == values + news
        paid.append(news)
        held[entry.client] = mask
    return paid
