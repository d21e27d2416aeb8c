"""Every method in a private round: admitted as docs/privacy.md says, and bounded by what one client may change."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import simulation
from fedsim.client import Trained
from fedsim.errors import ConfigurationError
from fedsim.experiment import Experiment
from fedsim.method import Arrived, ClientJob, ServerState
from fedsim.privacy import Mechanism, PrivateSum
from fedsim.server import enter_stage, initial_state
from fedsim.sparse import SparseVector
from fedsim.transport import Workers
from launch.build import build
from launch.configuration import read_settings
from launch.environment import start_workers
from launch.registry import choices
from tests.battery import entries

TABLE = Path(__file__).resolve().parents[1] / "docs" / "privacy.md"
ROWS = {
    name: (verdict, why)
    for name, verdict, why in re.findall(r"^\| (\w+) \| (yes|no|with [^|]+) \| ([^|]+) \|$", TABLE.read_text(), re.M)
}
PRIVATE = ("--privacy.clip", "0.01", "--privacy.noise_from", "seed")
ADMITTED = sorted(name for name, (verdict, _) in ROWS.items() if verdict != "no")


@pytest.fixture(scope="module")
def options_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By method."""
    found = entries(tmp_path_factory.mktemp("private"))
    found["LoRA"] += ["--server.weighting", "uniform"]
    return {name: [*options, *PRIVATE] for name, options in found.items()}


def test_the_table_has_every_method() -> None:
    assert sorted(ROWS) == sorted(choice.name for choice in choices("methods"))


@pytest.mark.parametrize("method", sorted(ROWS))
def test_a_method_is_admitted_or_refused_as_the_table_says(method: str, options_of: dict[str, list[str]]) -> None:
    verdict, why = ROWS[method]
    options = options_of[method]
    if verdict == "yes":
        assert not read_settings(options).method.private_refusal
        return
    with pytest.raises(ConfigurationError, match=r"^privacy\.clip is given, but ") as refused:
        read_settings(options)
    if verdict == "no":
        assert why in str(refused.value)
    else:
        needed = verdict.removeprefix("with ")
        assert needed in str(refused.value)
        assert not read_settings([*options, *needed.split()]).method.private_refusal


def made(method: str, options_of: dict[str, list[str]]) -> tuple[Experiment, Workers]:
    """An experiment of an admitted method, with what it has to be given for that."""
    options = [*options_of[method], "--rounds", "3"]
    if ROWS[method][0] != "yes":
        options += ROWS[method][0].removeprefix("with ").split()
    if method == "SLoRA":  # a round of stage one
        options += ["--method.stage_one_rounds", "1"]
    fabric, workers = start_workers("cpu", "32-true", 1)
    return build(read_settings(options), fabric, workers).experiment, workers


def summed(mechanism: Mechanism, aggregate: PrivateSum, uploads: Sequence[Arrived]) -> torch.Tensor:
    fresh = PrivateSum(mechanism, aggregate._state, aggregate._covered, aggregate._noise)
    for arrived in uploads:
        fresh.add(arrived)
    return fresh.finish().double()


@pytest.mark.parametrize("method", ADMITTED)
def test_one_client_moves_the_noiseless_sum_by_at_most_the_clip(
    method: str, options_of: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the uploads of two real rounds, each left out, and each replaced by rubbish."""
    experiment, workers = made(method, options_of)
    mechanism = experiment.privacy
    assert mechanism is not None
    heard: list[tuple[PrivateSum, list[Arrived]]] = []
    add = PrivateSum.add

    def spy(self: PrivateSum, arrived: Arrived) -> None:
        if not heard or heard[-1][0] is not self:
            heard.append((self, []))
        heard[-1][1].append(arrived)
        add(self, arrived)

    monkeypatch.setattr(PrivateSum, "add", spy)
    experiment.parameters.activate(experiment.method.segments(1))
    state = initial_state(experiment)
    for round in (1, 2):
        state = enter_stage(experiment, state, round, True)
        before = state.vector.detach().clone()
        simulation.run_round(experiment, state, round, workers, None)
        assert not torch.equal(state.vector.detach(), before)
    monkeypatch.undo()
    assert len(heard) == 2
    unit = 1.0 if mechanism.normalize else mechanism.clip
    most = unit / mechanism.cohort_size * (1 + 1e-6)
    for aggregate, uploads in heard:
        assert any(float(arrived.update.values.norm()) > mechanism.clip for arrived in uploads), "nothing was clipped"
        whole = summed(mechanism, aggregate, uploads)
        for at, arrived in enumerate(uploads):
            rest = [*uploads[:at], *uploads[at + 1 :]]
            assert float((whole - summed(mechanism, aggregate, rest)).norm()) <= most
            values = torch.full_like(arrived.update.values, 3e38)
            rubbish = SparseVector(arrived.update.length, values, arrived.update.indices)
            other = Arrived(arrived.client, arrived.plan, rubbish, arrived.beside, 10**9, 1e9)
            assert float((whole - summed(mechanism, aggregate, [*rest, other])).norm()) <= 2 * most


def published(state: ServerState, experiment: Experiment) -> dict[str, torch.Tensor]:
    """All that the server has, but for what clients keep, which is at their homes."""
    moments = state.optimizer.state.get(state.vector, {})
    groups = (moments, state.tensors, state.private, state.backbone.changed, experiment.method.views(state))
    found = {f"{at}.{name}": value for at, group in enumerate(groups) for name, value in group.items()}
    return {"vector": state.vector, **found}


def played(method: str, options_of: dict[str, list[str]], stretch: float) -> list[dict[str, torch.Tensor]]:
    """Three rounds whose noisy sums are given, of clients whose updates are so many times as long as they were."""
    experiment, workers = made(method, options_of)
    trainer = experiment.trainer

    def train(jobs: Sequence[ClientJob]) -> Iterator[Trained]:
        for done in trainer.train(jobs):
            start = done.job.reference
            yield replace(done, vector=start + stretch * (done.vector - start))

    experiment = replace(experiment, trainer=SimpleNamespace(train=train))  # type: ignore[arg-type]
    experiment.parameters.activate(experiment.method.segments(1))
    state, found = initial_state(experiment), []
    for round in (1, 2, 3):
        state = enter_stage(experiment, state, round, True)
        simulation.run_round(experiment, state, round, workers, None)
        found.append({name: value.detach().clone() for name, value in published(state, experiment).items()})
    return found


@pytest.mark.parametrize("method", ADMITTED)
def test_the_server_knows_clients_by_the_noisy_sum_alone(
    method: str, options_of: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the sums are the same, all that follows has the same bits, whatever clients sent; and so has where noise
    stands."""
    covers: list[Any] = []
    sums: list[torch.Tensor] = []

    def given(self: PrivateSum) -> torch.Tensor:
        covers.append(None if self._covered is None else self._covered.tolist())
        sums.append(self._total)
        drawn = np.random.default_rng(len(self._total)).standard_normal(len(self._total))
        return torch.from_numpy(drawn).to(self._state.vector)

    monkeypatch.setattr(PrivateSum, "finish", given)
    some, others = (played(method, options_of, stretch) for stretch in (1.0, -7.0))
    assert not any(torch.equal(here, there) for here, there in zip(sums[:3], sums[3:], strict=True))
    assert covers[:3] == covers[3:]
    for here, there in zip(some, others, strict=True):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)
