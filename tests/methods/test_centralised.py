import numpy as np
import pytest
import torch
from torch import Tensor

from data_partitions.partition import Partition
from fedsim.arrangement import Arrangement, Pooled
from fedsim.method import Method
from fedsim.options import ClientOptions, RunOptions, ServerOptions
from fedsim.sampling import local_batches
from fedsim.seeding import Purpose, generator
from launch.configuration import read_settings
from methods.adapter_lth import AdapterLTH
from methods.centralised import Centralised
from methods.lora import LoRA
from methods.sparse_adapter import SparseAdapter
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


def test_the_documented_configuration_is_the_twin() -> None:
    """One client that holds all rows, and takes one step of rate 1 a round."""
    given = "--partition IID --partition.clients 1 --cohort_size 1 --client.optimizer sgd --client.lr 1"
    given += " --client.momentum 0 --client.weight_decay 0 --client.max_steps 1"
    assert given in " ".join((Centralised.__doc__ or "").split())
    settings = read_settings([*given.split(), "--client.batch_size", "4"])
    assert (settings.client, settings.run.cohort_size) == (TWIN, 1)
    dealt = settings.partition.split(np.arange(9) % 3, None, np.random.default_rng(0))
    assert (dealt.clients, dealt.of(0).tolist()) == (1, list(range(9)))


@pytest.mark.parametrize(
    ("method", "densities", "fresh_adam"),
    [
        (Centralised(lora_rank=2), {}, False),
        (LoRA(lora_rank=2), {}, False),
        (AdapterLTH(prune_fraction=0.5, lora_rank=2), {2: 1 / 2, 3: 1 / 4, 4: 1 / 8, 5: 1 / 16}, False),
        (SparseAdapter(density=0.25, lora_rank=2), {2: 1 / 4}, True),
    ],
)
def test_five_rounds_are_five_steps_of_a_plain_adam(
    method: Method, densities: dict[int, float], fresh_adam: bool
) -> None:
    """By its own arrangement, and the others by configuration alone.

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
    found, expected = last.state.vector.detach(), plain_adam(densities, fresh_adam)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(found == 0, expected == 0)
    assert bool((expected == 0).any()) == bool(densities)


def plain_adam(densities: dict[int, float], fresh_adam: bool) -> Tensor:
    """Five steps of torch's Adam on named tensors, batch by batch, before some of which the smallest entries go.

    Args:
        densities: by step, what is left of all A, of all B and of the head.
        fresh_adam: whether Adam begins anew when they are pruned; otherwise its moments lose the same entries.
    """
    plain = tiny.build(LoRA(lora_rank=2), dtype=torch.float64)
    named = {name: p for name, p in plain.model.named_parameters() if p.requires_grad}
    masks = {name: torch.ones_like(p) for name, p in named.items()}
    optimizer = torch.optim.Adam(named.values(), 0.01)
    for step in range(1, 6):
        if step in densities:
            for segment in ("lora_A", "lora_B", "modules_to_save"):
                sizes = {name: p.detach().abs() for name, p in named.items() if segment in name}
                everything = torch.cat([size.flatten() for size in sizes.values()])
                smallest = everything.topk(int(densities[step] * len(everything))).values[-1]
                masks |= {name: (size >= smallest).double() for name, size in sizes.items()}
            if fresh_adam:
                optimizer = torch.optim.Adam(named.values(), 0.01)
            for name, parameter in named.items():
                for values in (parameter.data, *optimizer.state[parameter].values()):
                    if values.ndim:  # all but Adam's count of steps
                        values *= masks[name]
        (rows,) = local_batches(generator(0, Purpose.BATCHES, step, 0), np.arange(40), 4, 1, 1)
        optimizer.zero_grad(set_to_none=False)
        plain.module.example_losses(plain.train.batch(torch.from_numpy(rows))).mean().backward()
        for name, parameter in named.items():
            parameter.grad *= masks[name]
        optimizer.step()
    return plain.vector
