"""The engine against the paper's listings of pruning: every round's P, bit for bit in float64 and in float32."""

import pytest
import torch

from fedsim import simulation
from fedsim.experiment import Experiment
from fedsim.sampling import local_batches, sample_cohort
from fedsim.seeding import Purpose, generator
from fedsim.server import initial_state
from launch.build import build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests.oracle.algorithms_5_and_6 import Federation, federated_select, fixed_density, iterative_pruning

ROUNDS, COHORT, SEED = 4, 4, 3
METHODS = {
    "AdapterLTH": (
        ("--method.prune_fraction", "0.4", "--method.prune_every_rounds", "1"),
        lambda federation: iterative_pruning(federation, 0.4, 1),
    ),
    "SparseAdapter": (("--method.density", "0.25"), lambda federation: fixed_density(federation, 0.25, 1)),
    "FederatedSelect": (("--method.density", "0.25"), lambda federation: federated_select(federation, 0.25, 1)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["segment", "global"])
@pytest.mark.parametrize(("precision", "dtype"), [("64-true", "float64"), ("32-true", "float32")])
def test_four_rounds_equal_the_listing(method: str, scope: str, precision: str, dtype: str) -> None:
    options, listing = METHODS[method]
    given = ["--rounds", str(ROUNDS), "--cohort_size", str(COHORT), "--precision", precision, "--seed", str(SEED)]
    given += ["--method", method, *options, "--method.mask_scope", scope, "--method.lora_rank", "2"]
    settings = read_settings([*given, "--communication.value_dtype", dtype])
    fabric, workers = start_workers("cpu", precision, 1)
    experiment = build(settings, fabric, workers).experiment
    expected = listing(_federation(experiment, scope))
    state = initial_state(experiment)
    for round, theirs in enumerate(expected, start=1):
        simulation.run_round(experiment, state, round, workers, None)
        ours = state.vector.detach()
        assert torch.equal(ours, theirs), f"round {round}: {(ours - theirs).abs().max()}"


def _federation(experiment: Experiment, scope: str) -> Federation:
    cohorts = [
        sample_cohort(generator(SEED, Purpose.COHORT, round), experiment.population.clients, COHORT)
        for round in range(1, ROUNDS + 1)
    ]

    def batches_of(round: int, client: int) -> list:
        random = generator(SEED, Purpose.BATCHES, round, client)
        return list(local_batches(random, experiment.partition.of(client), 16, 1, None))

    dtype = experiment.parameters.vector.dtype
    columns = {n: c.to(dtype) if c.is_floating_point() else c for n, c in experiment.data.train.items()}
    model = experiment.evaluator._backbone.eval()
    return Federation(model, columns, cohorts, batches_of, 0.02, 0.9, 0.005, scope)
