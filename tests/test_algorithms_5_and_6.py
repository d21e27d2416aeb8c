"""The engine against the paper's listings of pruning: every round's P, bit for bit in float64 and in float32."""

from pathlib import Path

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
from tests import tiny
from tests.oracle.algorithms_5_and_6 import Federation, federated_select, fixed_density, iterative_pruning

ROUNDS, COHORT, SEED = 5, 4, 3
FRACTION = ("--method.prune_fraction", "0.4", "--method.prune_every_rounds")
ON_LORA = ("--method.lora_rank", "2")
QUARTER = ("--method.density", "0.25")
FROM_P = ("--method.go_on_from", "initial")
CASES = {
    "AdapterLTH": ((*ON_LORA, *FRACTION, "1"), lambda federation: iterative_pruning(federation, 0.4, 1)),
    "AdapterLTH, q=2": ((*ON_LORA, *FRACTION, "2"), lambda federation: iterative_pruning(federation, 0.4, 2)),
    "FedSparsifyGlobal": ((*FRACTION, "1"), lambda federation: iterative_pruning(federation, 0.4, 1)),
    "FedSparsifyGlobal, q=2": ((*FRACTION, "2"), lambda federation: iterative_pruning(federation, 0.4, 2)),
    "SparseAdapter": ((*ON_LORA, *QUARTER), lambda federation: fixed_density(federation, 0.25, 1, "tuned")),
    "SparseAdapter, from P": (
        (*ON_LORA, *QUARTER, *FROM_P),
        lambda federation: fixed_density(federation, 0.25, 1, "initial"),
    ),
    "SPDST": (QUARTER, lambda federation: fixed_density(federation, 0.25, 1, "tuned")),
    "SPDST, from P": ((*QUARTER, *FROM_P), lambda federation: fixed_density(federation, 0.25, 1, "initial")),
    "FederatedSelect": ((*ON_LORA, *QUARTER), lambda federation: federated_select(federation, 0.25, 1)),
    "FederatedSelect, backbone": (
        (*QUARTER, "--method.parameters", "backbone"),
        lambda federation: federated_select(federation, 0.25, 0),
    ),
}
"""By method and what is set: its options, and the listing that it is."""

DOUBLE, SINGLE = ("64-true", "float64"), ("32-true", "float32")
RUNS = (
    *((case, "segment", *DOUBLE) for case in CASES),
    *((case, "global", *DOUBLE) for case in CASES if "," not in case),
    *((case, "segment", *SINGLE) for case in ("AdapterLTH", "FedSparsifyGlobal", "SparseAdapter", "FederatedSelect")),
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_backbone(tmp_path_factory.mktemp("backbone"), "vit", num_labels=10)


@pytest.mark.parametrize(("case", "scope", "precision", "dtype"), RUNS)
def test_five_rounds_equal_the_listing(case: str, scope: str, precision: str, dtype: str, backbone: Path) -> None:
    options, listing = CASES[case]
    given = ["--rounds", str(ROUNDS), "--cohort_size", str(COHORT), "--precision", precision, "--seed", str(SEED)]
    given += ["--method", case.split(",")[0], *options, "--method.mask_scope", scope]
    given += ["--backbone.path", str(backbone)]
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
