"""What every method must hold in its rounds, whatever its rule; `tests/test_methods_runs.py` has whole runs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim import simulation
from fedsim.briefing import Briefing
from fedsim.client import Trained
from fedsim.method import ClientJob, ServerState
from fedsim.server import enter_stage, initial_state
from fedsim.transport import Workers
from launch.build import Built, build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests.battery import BATTERY, NOT_PACKED, entries

METHODS = sorted(BATTERY)


@pytest.fixture(scope="module")
def options_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By method."""
    return entries(tmp_path_factory.mktemp("battery"))


def built(*options: str) -> tuple[Built, Workers]:
    settings = read_settings(list(options))
    fabric, workers = start_workers("cpu", settings.precision, 1)
    return build(settings, fabric, workers), workers


def started(made: Built) -> ServerState:
    """The server before the first round, in the first round's stage."""
    made.experiment.parameters.activate(made.experiment.method.segments(1))
    return initial_state(made.experiment)


@pytest.mark.parametrize("method", METHODS)
def test_one_round_changes_what_trains_and_nothing_else(
    method: str, options_of: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P moves where clients upload, or where the method drew it anew, and nowhere else; the frozen backbone keeps every
    bit, but for what the method itself changed."""
    made, workers = built(*options_of[method])
    state, told = started(made), list[Briefing]()
    brief = simulation.brief

    def spy(*args: Any) -> Briefing:
        told.append(brief(*args))
        return told[-1]

    monkeypatch.setattr(simulation, "brief", spy)
    frozen = {name: p.detach().clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    before = state.vector.detach().clone()
    simulation.run_round(made.experiment, state, 1, workers, None)
    moved = (state.vector.detach() != before).nonzero().squeeze(1)
    assert (len(moved) > 0) == (method != "LocalOnly")
    hooks = made.experiment.method
    supports = [hooks.upload_support(told[0].shared, plan) for plan in told[0].plans if plan is not None]
    known = [support for support in supports if support is not None]
    if len(known) == len(supports):
        assert torch.isin(moved, torch.cat(known)).all()
    changed = made.experiment.backbone.changed
    assert bool(changed) == (method in {"FedExLoRA", "FLoRAStacking"})
    own = {name for held in state.clients.values() for name in held.tensors}
    assert own == ({"own"} if method in {"FedSALoRA", "LocalOnly"} else set())
    kept = {name: p for name, p in made.model.named_parameters() if name in frozen and name not in changed}
    assert kept
    assert all(torch.equal(p, frozen[name]) for name, p in kept.items())


@pytest.mark.parametrize("method", METHODS)
def test_both_trainers_agree(method: str, options_of: dict[str, list[str]]) -> None:
    """Norm of the difference over norm of the update, per client, one after another against packed.

    In the second round, whose jobs have masks, penalties and parts of their own; in float64, as the two round alike
    but for the last bits.
    """
    options = [*options_of[method], "--precision", "64-true", "--client.batch_size", "2", "--client.local_epochs", "2"]
    if method == "SLoRA":  # the stage that packs
        options += ["--method.stage_one_rounds", "1"]
    made, workers = built(*options)
    packed, _ = built(*options, "--client.pack", "3")
    assert (packed.pack == 1) == (method in NOT_PACKED), packed.notes
    state, jobs, updates = started(made), list[ClientJob](), dict[int, Tensor]()
    train = made.experiment.trainer.train

    def spy(given: list[ClientJob]) -> Iterator[Trained]:
        jobs[:] = given
        done = list(train(given))
        updates.update({t.job.client: t.job.reference - t.vector for t in done})
        return iter(done)

    made.experiment.trainer.train = spy  # type: ignore[method-assign, assignment]
    for round in (1, 2):
        state = enter_stage(made.experiment, state, round, True)
        updates.clear()
        simulation.run_round(made.experiment, state, round, workers, None)
        if round == 1:
            changed = {name: value.clone() for name, value in made.experiment.backbone.changed.items()}
    packed.experiment.backbone.write(changed)
    packed.experiment.parameters.activate(made.experiment.method.segments(2))
    assert len({len(job.batches) for job in jobs}) > 1 or len(jobs) == 1, "clients of equal length would prove less"
    for done in packed.experiment.trainer.train(jobs):
        update = updates[done.job.client]
        assert update.norm() > 0
        assert (done.job.reference - done.vector - update).norm() <= 1e-12 * update.norm()
