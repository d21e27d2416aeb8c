import numpy as np
import pytest
import torch

from data_partitions.partition import Partition
from fedsim.arrangement import Arrangement, Pooled
from fedsim.method import Method
from fedsim.options import ClientOptions, RunOptions, ServerOptions
from fedsim.sampling import local_batches
from fedsim.seeding import Purpose, generator
from methods.centralised import Centralised
from methods.lora import LoRA
from tests import tiny
from tests.rounds import rounds

TWIN = ClientOptions("sgd", lr=1.0, momentum=0.0, max_steps=1, batch_size=4)


def arranged(sizes: list[int]) -> Arrangement:
    given = ClientOptions("adamw", 0.3, 0.5, 0.1, 0.2, 0.7, 4, local_epochs=3, backbone_dropout=True, pack=2)
    return Centralised().arrange(Arrangement(tiny.partition(sizes), given, RunOptions(rounds=7, cohort_size=3, seed=5)))


def test_one_client_holds_all_rows_and_takes_one_step_of_rate_one() -> None:
    made = arranged([5, 0, 3])
    assert made.population.clients == 1
    assert made.population.examples(0) == 8
    assert made.population.of(0).tolist() == list(range(8))
    assert made.run == RunOptions(rounds=7, cohort_size=1, seed=5)
    assert made.client == ClientOptions("sgd", 1.0, 0.0, 0.0, None, 0.0, 4, 1, 1, backbone_dropout=True, pack=2)


def test_rows_are_pooled_in_rising_order_whoever_held_them() -> None:
    owners = np.array([2, 0, 1, 0, 2])
    pooled = Pooled(Partition.from_owners(owners, 4, {}))
    assert pooled.of(0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", [Centralised(lora_rank=2), LoRA(lora_rank=2)])
def test_five_rounds_are_five_steps_of_a_plain_adam(method: Method) -> None:
    """By its own arrangement, and LoRA by configuration alone: torch's Adam on named tensors, batch by batch.

    The start less the start less the gradient is the gradient but for rounding, which Adam's division shows most where
    a gradient is tiny.
    """
    arranged = Arrangement(tiny.partition([40]), TWIN, RunOptions(rounds=5, cohort_size=1))
    if isinstance(method, Centralised):
        asked = Arrangement(tiny.partition([13, 0, 20, 7]), ClientOptions(batch_size=4), RunOptions(rounds=5))
        arranged = method.arrange(asked)
    assert arranged.client == TWIN
    fields = {"population": arranged.population, "client": arranged.client, "run": arranged.run}
    one_step = tiny.SGD(arranged.client.lr, arranged.client.momentum)
    *_, last = rounds(method, 5, [40], optimizer=one_step, server=ServerOptions(lr=0.01), **fields)

    plain = tiny.build(LoRA(lora_rank=2), dtype=torch.float64)
    named = [p for p in plain.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(named, 0.01)
    for round in range(1, 6):
        (rows,) = local_batches(generator(0, Purpose.BATCHES, round, 0), np.arange(40), 4, 1, 1)
        optimizer.zero_grad(set_to_none=False)
        plain.module.example_losses(plain.train.batch(torch.from_numpy(rows))).mean().backward()
        optimizer.step()
    torch.testing.assert_close(last.state.vector.detach(), plain.vector, rtol=0, atol=1e-12)
