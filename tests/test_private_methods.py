"""Every method in a private round: admitted as docs/privacy.md says, and bounded by what one client may change."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedsim import simulation
from fedsim.errors import ConfigurationError
from fedsim.method import Arrived
from fedsim.privacy import Mechanism, PrivateSum
from fedsim.server import enter_stage, initial_state
from fedsim.sparse import SparseVector
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
    with pytest.raises(ConfigurationError, match=r"^privacy\.clip is given, but .* cannot be private: ") as refused:
        read_settings(options)
    if verdict == "no":
        assert why in str(refused.value)
    else:
        needed = verdict.removeprefix("with ")
        assert needed in str(refused.value)
        assert not read_settings([*options, *needed.split()]).method.private_refusal


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
    options = [*options_of[method], "--rounds", "2"]
    if ROWS[method][0] != "yes":
        options += ROWS[method][0].removeprefix("with ").split()
    if method == "SLoRA":  # a stage each
        options += ["--method.stage_one_rounds", "1"]
    settings = read_settings(options)
    fabric, workers = start_workers("cpu", "32-true", 1)
    experiment = build(settings, fabric, workers).experiment
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
