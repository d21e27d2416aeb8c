from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.codec import HEADER_BYTES
from fedsim.method import ClientState, Download
from fedsim.transport import Workers
from methods.flora_stacking import FLoRAStacking
from tests import factored, tiny
from tests.oracle import products
from tests.pair import on_two
from tests.short_run import Ended, same_bits, short_run

SHAPES = {"wide": (5, 7), "tall": (6, 4)}
SEED_BYTES = HEADER_BYTES + 8


def method_of(**options: object) -> FLoRAStacking:
    return FLoRAStacking(lora_rank=2, **options)  # type: ignore[arg-type]


def test_a_round_by_hand() -> None:
    """A of 1 and 3, B of 2 and 4, from 1 and 3 examples: the weight takes (2 + 36) / 4 = 9.5, times alpha / r = 2.

    What is left is an adapter of zero.
    """
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    before = state.backbone.weight("one").item()
    method = FLoRAStacking(lora_rank=1, lora_alpha=2)
    factored.run_round(method, state, factored.given(state, a=[1, 3], b=[2, 4], examples=[1, 3]))
    assert state.backbone.weight("one").item() - before == pytest.approx(19, abs=1e-12)
    a, b = factored.factors(state)["one"]
    assert b.item() == 0
    assert 0 < abs(a.item()) <= 1
    assert state.measures["product_error"] < 1e-7


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_weights_take_on_the_mean_of_the_products(weighting: str) -> None:
    state, method = factored.server(SHAPES, lora_rank=2), method_of(weighting=weighting)
    for round in (1, 2):
        method.prepare(state, round)
        clients = factored.drifted(state, 3, by=1.0, seed=round)
        own = {layer: factored.of_clients(state, clients, layer) for layer in SHAPES}
        before = {layer: state.backbone.weight(layer).numpy().copy() for layer in SHAPES}
        factored.run_round(method, state, clients, round)
        for layer, pair in own.items():
            target = products.mean_product(*pair, factored.weights_of(clients, weighting))
            made = factored.effective(state, method.scale)[layer]
            np.testing.assert_allclose(made, before[layer] + method.scale * target, rtol=0, atol=1e-12)
            assert not factored.factors(state)[layer][1].any()


def test_a_is_drawn_as_peft_draws_it_and_by_the_seed_alone() -> None:
    """Within 1 / sqrt(D_in), with the variance of a uniform draw, 1 / (3 D_in); anew in every round."""
    state, method = factored.server({"one": (3, 900), "two": (2, 4)}, lora_rank=2), method_of()
    drawn = []
    for round in (1, 2, 1):
        state.vector.data.fill_(9.0)
        method.prepare(state, round)
        a, b = factored.factors(state)["one"]
        assert np.abs(a).max() <= 900**-0.5
        assert a.var() == pytest.approx(1 / (3 * 900), rel=0.1)
        assert not b.any()
        assert (state.vector.detach()[state.layout.where(["head"])] == 9).all()
        drawn.append(a)
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.isclose(drawn[0], drawn[1]).any()


def test_a_client_starts_where_the_server_stands_from_the_head_and_eight_bytes() -> None:
    state, method = factored.server(SHAPES, lora_rank=2, dtype=torch.float32), method_of()
    method.prepare(state, 5)
    shared = tiny.shared_of(state, 5)
    download = method.download(state, shared, method.plan(state, 5, 0))
    (seed,) = download.beside
    assert isinstance(seed, bytes)
    assert len(seed) == 8
    assert torch.equal(method.start(shared, download, ClientState()), state.vector.detach())
    other = Download(download.values, (bytes(8),))  # nothing of the state but these bytes decides what A is
    assert not torch.equal(method.start(shared, other, ClientState()), state.vector.detach())


def test_what_is_evaluated_is_the_next_rounds_start() -> None:
    """So that clients that train on before they are evaluated have an A that is not zero."""
    state, method = factored.server(SHAPES, lora_rank=2, dtype=torch.float32), method_of()
    method.prepare(state, 1)
    factored.run_round(method, state, factored.drifted(state, 2), 1)
    before = state.vector.detach().clone()
    method.prepare(state, 2)
    torch.testing.assert_close(state.vector.detach(), before, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backbone", ["vit", "gpt2_lm"])
def test_down_go_the_head_a_seed_and_what_a_client_lacks(backbone: str, tmp_path: Path) -> None:
    """A language model has no head: its clients are sent a seed, and what they lack.

    Of three clients of rank 2 the stacks have 6 (D_out + D_in) values against D_out D_in: 192 and 256 for the ViT's
    modules, 384 and 768 for GPT-2's.
    """
    ended = short_run(method_of(), tmp_path, rounds=6, backbone=backbone)
    layout = ended.made.parameters.layout
    shapes = [(pair.b.shape[0], pair.a.shape[1]) for pair in layout.pairs]
    head, whole = layout.count(["head"]), sum(d_out * d_in for d_out, d_in in shapes)
    assert (head == 0) == (backbone == "gpt2_lm")
    last: dict[str, int] = {}
    merges: dict[int, int] = {}
    for round in range(1, 7):
        rows = [row for row in ended.ledger if row["round"] == str(round) and int(row["examples"])]
        for row in rows:
            lacks = [size for at, size in merges.items() if at >= max(1, last.get(row["client"], 0))]
            extra = min(sum(lacks), whole)
            assert int(row["download_values"]) == head + extra
            parts = 1 if sum(lacks) >= whole else len(lacks)
            assert int(row["download_bytes"]) == HEADER_BYTES * (1 + parts) + SEED_BYTES + 4 * (head + extra)
            assert int(row["upload_values"]) == layout.length
        last |= {row["client"]: round for row in rows}
        merges[round] = sum(min(len(rows) * 2 * sum(shape), shape[0] * shape[1]) for shape in shapes)
    assert len({row["download_values"] for row in ended.ledger}) >= 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return short_run(method_of(), tmp_path_factory.mktemp("alone"))


def test_two_workers_give_one_workers_bits(alone: Ended, tmp_path: Path) -> None:
    made = [tiny.build(method_of()) for _ in range(2)]

    def work(workers: Workers) -> Ended:
        return short_run(made[workers.rank].method, tmp_path, workers, made=made[workers.rank])

    server, other = on_two(work)
    assert same_bits(server, alone)
    assert all(torch.equal(value, other.weights[name]) for name, value in alone.weights.items())


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(alone: Ended, tmp_path: Path) -> None:
    short_run(method_of(), tmp_path, rounds=2)
    assert same_bits(short_run(method_of(), tmp_path, rounds=4, resume=True), alone)


def test_the_adapter_of_a_run_is_zero_and_its_backbone_has_learnt(alone: Ended) -> None:
    base = tiny.build(method_of()).model
    for pair in alone.made.parameters.layout.pairs:
        assert not alone.weights[pair.b.name].any()
        name = f"{pair.layer}.base_layer.weight"
        assert not torch.equal(alone.weights[name], base.get_parameter(name))
    losses = [float(row["loss"]) for row in alone.metrics]
    assert len(set(losses)) == len(losses)
