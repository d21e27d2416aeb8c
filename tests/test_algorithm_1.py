"""The engine against the paper's listing, line by line: every round's P, bit for bit in float64."""

import pytest
import torch
from torch import Tensor

from fedsim import simulation
from fedsim.method import ServerState
from fedsim.sampling import local_batches, sample_cohort
from fedsim.seeding import Purpose, generator
from fedsim.transport import Workers
from launch.build import build
from launch.configuration import read_settings
from launch.environment import start_workers
from tests.oracle.algorithm_1 import flasc

ROUNDS, COHORT = 3, 4


@pytest.mark.parametrize(("method", "down", "up"), [("LoRA", 1, 1), ("FLASC", 0.25, 0.0625)])
@pytest.mark.parametrize(("precision", "dtype"), [("64-true", "float64"), ("32-true", "float32")])
def test_three_rounds_equal_the_listing(method: str, down: float, up: float, precision: str, dtype: str) -> None:
    """Float32 too: the engine's flat kernels round as torch's own optimisers do."""
    options = ["--rounds", str(ROUNDS), "--cohort_size", str(COHORT), "--precision", precision, "--method", method]
    options += ["--communication.value_dtype", dtype, "--method.lora_rank", "2", "--seed", "3"]
    if method == "FLASC":
        options += ["--method.download_density", str(down), "--method.upload_density", str(up)]
    settings = read_settings(options)
    fabric, workers = start_workers("cpu", precision, 1)
    built = build(settings, fabric, workers)
    experiment, data = built.experiment, built.experiment.data
    # As many clients as one cohort, all with examples: the listing knows no client without.
    cohorts = [
        sample_cohort(generator(3, Purpose.COHORT, round), experiment.partition.clients, COHORT) for round in (1, 2, 3)
    ]
    assert all(experiment.partition.examples(client) for cohort in cohorts for client in cohort)

    def batches_of(round: int, client: int) -> list:
        random = generator(3, Purpose.BATCHES, round, client)
        return list(local_batches(random, experiment.partition.of(client), 16, 1, None))

    columns = {
        n: c.to(experiment.parameters.vector.dtype) if c.is_floating_point() else c for n, c in data.train.items()
    }
    expected = flasc(built.model.eval(), columns, cohorts, batches_of, (down, up), (0.02, 0.9), 0.005)
    found = _engine(experiment, workers)
    for round, (ours, theirs) in enumerate(zip(found, expected, strict=True), start=1):
        assert torch.equal(ours, theirs), f"round {round}: {(ours - theirs).abs().max()}"


def _engine(experiment: simulation.Experiment, workers: Workers) -> list[Tensor]:
    state: ServerState = simulation.initial_state(experiment)
    after = []
    for round in range(1, ROUNDS + 1):
        simulation.run_round(experiment, state, round, workers, None)
        after.append(state.vector.detach().clone())
    return after
