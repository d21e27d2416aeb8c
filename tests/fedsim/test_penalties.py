"""FedProx by hand: its gradient, one step of both trainers, and its sum with a method's own penalty."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.briefing import Briefing
from fedsim.errors import ConfigurationError
from fedsim.jobs import round_job
from fedsim.method import ClientState, Penalty, Plan
from fedsim.optimizers import SGD
from fedsim.options import ClientOptions
from fedsim.penalties import all_penalties
from fedsim.server import initial_state
from launch.build import build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests import tiny

MU = 0.25


def towards(vector: Tensor, reference: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """A method's own penalty, whose gradient is what the client was given."""
    return (tensors["pull"] * vector).sum()


def test_the_gradient_pulls_towards_where_the_client_started() -> None:
    """mu / 2 ||v - w||^2 has the gradient mu (v - w)."""
    penalty = all_penalties(None, MU)
    assert penalty is not None
    vector, reference = torch.tensor([1.0, -2.0, 4.0]), torch.tensor([3.0, -2.0, 2.0])
    assert penalty(vector, reference, {}).item() == MU / 2 * (4 + 4)
    assert torch.func.grad(penalty)(vector, reference, {}).tolist() == [-0.5, 0.0, 0.5]


def test_it_is_added_to_a_methods_own() -> None:
    penalty = all_penalties(towards, MU)
    assert penalty is not None
    vector, reference, pull = torch.tensor([1.0, -2.0]), torch.tensor([3.0, -2.0]), torch.tensor([10.0, 20.0])
    assert penalty(vector, reference, {"pull": pull}).item() == MU / 2 * 4 + 10 - 40
    assert torch.func.grad(penalty)(vector, reference, {"pull": pull}).tolist() == [9.5, 20.0]


def test_without_mu_there_is_nothing_to_add() -> None:
    assert all_penalties(None, 0) is None
    assert all_penalties(towards, 0) is towards


def test_a_negative_mu_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"client\.proximal_mu is -0\.1; expected 0 or more"):
        ClientOptions(proximal_mu=-0.1)


@pytest.mark.parametrize("slots", [0, 3], ids=["one after another", "packed"])
@pytest.mark.parametrize("own", [False, True])
def test_a_step_of_both_trainers_by_hand(slots: int, own: bool) -> None:
    """One step of plain SGD from a start that is off its reference: further by lr (mu (start - reference) + pull)."""
    built = tiny.build(dtype=torch.float64)
    start = built.start()
    fields: list[dict[str, Any]] = [
        {"start": start, "reference": start - shift, "penalty_tensors": {"pull": torch.full_like(start, 0.3 * shift)}}
        for shift in (1.0, -2.0, 0.5)
    ]
    jobs = [built.job(client, 4, batch_size=4, **given) for client, given in enumerate(fields)]
    penalty, plain = all_penalties(towards if own else None, MU), SGD(0.1)

    def ends(penalty: Penalty | None) -> list[Tensor]:
        trainer = built.packed(slots, plain, penalty) if slots else built.sequential(plain, penalty)
        return [trained.vector for trained in sorted(trainer.train(jobs), key=lambda trained: trained.job.client)]

    for job, ended, without in zip(jobs, ends(penalty), ends(None), strict=True):
        assert len(job.batches) == 1
        pull = job.penalty_tensors["pull"] if own else 0
        expected = without - 0.1 * (MU * (job.start - job.reference) + pull)
        torch.testing.assert_close(ended, expected, rtol=0, atol=1e-13)
        assert (ended - without).abs().min() > 0.01


def test_a_run_has_the_penalty_that_was_asked_for() -> None:
    """client.proximal_mu reaches both trainers: a client ends nearer to where it started."""
    distances: dict[tuple[str, str], float] = {}
    for mu, pack in (("0", "1"), ("5", "1"), ("5", "2")):
        options = ("--client.proximal_mu", mu, "--client.pack", pack, "--client.local_epochs", "4")
        fabric, workers = start_workers("cpu", "64-true", 1)
        experiment = build(read_settings([*options, "--precision", "64-true"]), fabric, workers).experiment
        state = initial_state(experiment)
        client = next(c for c in range(experiment.partition.clients) if experiment.partition.examples(c) > 16)
        briefing = Briefing(tiny.shared_of(state), [Plan()], [ClientState()])
        job = round_job(experiment, briefing, 0, client, state.initial, None)
        (trained,) = experiment.trainer.train([job])
        distances[mu, pack] = float((trained.vector - job.start).norm())
    assert distances["5", "1"] < 0.8 * distances["0", "1"]
    assert distances["5", "2"] == pytest.approx(distances["5", "1"], rel=1e-12)
