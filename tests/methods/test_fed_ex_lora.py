from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GPT2ForSequenceClassification, ViTForImageClassification

from fedsim import simulation
from fedsim.adapters import export_adapter, export_backbone
from fedsim.codec import HEADER_BYTES
from fedsim.method import Plan
from fedsim.options import CommunicationOptions
from fedsim.transport import Workers
from methods.fed_ex_lora import FedExLoRA
from methods.fed_it import FedIT
from tests import factored, tiny
from tests.oracle import products
from tests.pair import on_two
from tests.short_run import Ended, same_bits, short_run

SHAPES = {"wide": (5, 7), "tall": (6, 4)}
BOTH = (FedExLoRA(lora_rank=2), FedExLoRA(lora_rank=2, weighting="examples"))
PLAIN = {"vit": ViTForImageClassification, "gpt2": GPT2ForSequenceClassification}


def test_a_round_by_hand() -> None:
    """A of 1 and 3, B of 2 and 4: the means have the product 6, the mean of the products is 7, so the weight takes 1.

    At alpha 3 and rank 1 it takes 3 times that.
    """
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    before = state.backbone.weight("one").item()
    method = FedExLoRA(lora_rank=1, lora_alpha=3)
    factored.run_round(method, state, factored.given(state, a=[1, 3], b=[2, 4], examples=[1, 3]))
    a, b = factored.factors(state)["one"]
    assert (a.item(), b.item()) == pytest.approx((2, 3), abs=1e-14)
    assert state.backbone.weight("one").item() - before == pytest.approx(3, abs=1e-13)
    assert state.measures["product_error"] < 1e-7


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.weighting)
def test_the_weight_in_effect_is_the_mean_of_the_products(method: FedExLoRA) -> None:
    """Round after round; the factors are FedIT's."""
    state = factored.server(SHAPES, lora_rank=2)
    fed_it = factored.server(SHAPES, lora_rank=2)
    for round in (1, 2):
        clients = factored.drifted(state, 3, by=1.0, seed=round)
        own = {layer: factored.of_clients(state, clients, layer) for layer in SHAPES}
        before = {layer: state.backbone.weight(layer).numpy().copy() for layer in SHAPES}
        factored.run_round(method, state, clients, round)
        factored.run_round(FedIT(weighting=method.weighting), fed_it, clients)
        for layer, (a, b) in own.items():
            target = products.mean_product(a, b, factored.weights_of(clients, method.weighting))
            made = factored.effective(state, method.scale)[layer]
            np.testing.assert_allclose(made, before[layer] + method.scale * target, rtol=0, atol=1e-12)
        np.testing.assert_allclose(state.vector.detach().numpy(), fed_it.vector.detach().numpy(), rtol=0, atol=1e-14)


def test_the_error_is_what_the_weights_round_away() -> None:
    """Nothing in float64; in float32 a weight of 1000 keeps the last digits of a residual no more."""
    errors = {}
    for dtype in (torch.float64, torch.float32):
        state = factored.server(SHAPES, lora_rank=2, dtype=dtype)
        for layer in SHAPES:
            state.backbone.weight(layer).fill_(1000.0)
        clients = factored.drifted(state, 3, by=0.01)
        own = {layer: factored.of_clients(state, clients, layer) for layer in SHAPES}
        before = {layer: state.backbone.weight(layer).double().numpy().copy() for layer in SHAPES}
        method = FedExLoRA(lora_rank=2)
        factored.run_round(method, state, clients)
        errors[dtype] = state.measures["product_error"]
        off = whole = 0.0
        for layer, (a, b) in own.items():
            target = products.mean_product(a, b, factored.weights_of(clients, "uniform"))
            made = (factored.effective(state, method.scale)[layer] - before[layer]) / method.scale
            off, whole = off + np.linalg.norm(made - target) ** 2, whole + np.linalg.norm(target) ** 2
        if dtype == torch.float32:
            assert errors[dtype] == pytest.approx((off / whole) ** 0.5, rel=1e-3)
    assert errors[torch.float64] < 1e-9 < 1e-6 < errors[torch.float32] < 1e-3


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_a_residual_travels_as_factors_of_all_clients_but_one(clients: int) -> None:
    """(U - 1) r (D_out + D_in) values beside P; what comes of them is the residual, to float32."""
    shape = (40, 50)
    state = factored.server({"one": shape}, lora_rank=2, dtype=torch.float32)
    method = FedExLoRA(lora_rank=2)
    members = factored.drifted(state, clients, by=1.0)
    own, weights = factored.of_clients(state, members, "one"), factored.weights_of(members, "uniform")
    factored.run_round(method, state, members)
    download = method.download(state, tiny.shared_of(state, 2), method.plan(state, 2, 0))
    assert torch.equal(download.values.values, state.vector.detach())
    if clients == 1:
        assert download.beside == ()
        assert state.backbone.changed == {}
        return
    (part,) = download.beside
    k = (clients - 1) * 2
    assert part.count == k * sum(shape)
    left, right = part.values[: shape[0] * k].view(-1, k), part.values[shape[0] * k :].view(k, -1)
    lacking = products.mean_product(*own, weights) - products.mean_of(own[1], weights) @ products.mean_of(
        own[0], weights
    )
    np.testing.assert_allclose((left @ right).numpy(), lacking, rtol=0, atol=1e-4)


def test_who_missed_rounds_pays_for_them(tmp_path: Path) -> None:
    """Every download of a run: P, and the residuals of the rounds since the client last took part, first timers all.

    With three clients of rank 2, a module of 16 by 16 has 128 values of factors against 256: after two rounds the
    changed weights are as short as any residuals.
    """
    ended = short_run(FedExLoRA(lora_rank=2), tmp_path, rounds=6)
    length, pairs = len(ended.result.vector), len(ended.made.parameters.layout.pairs)
    last: dict[str, int] = {}
    merges: dict[int, int] = {}
    for round in range(1, 7):
        rows = [row for row in ended.ledger if row["round"] == str(round) and int(row["examples"])]
        for row in rows:
            lacks = [size for at, size in merges.items() if at >= max(1, last.get(row["client"], 0))]
            extra = min(sum(lacks), pairs * 256)
            assert int(row["download_values"]) == length + extra
            parts = (extra > 0) if sum(lacks) >= pairs * 256 else len(lacks)
            assert int(row["download_bytes"]) == HEADER_BYTES * (1 + parts) + 4 * (length + extra)
            assert int(row["upload_values"]) == length
        last |= {row["client"]: round for row in rows}
        merges[round] = pairs * min((len(rows) - 1) * 2 * 32, 256)
    seen = {int(row["download_values"]) - length for row in ended.ledger if int(row["examples"])}
    assert {0, pairs * 128, pairs * 256} <= seen


def test_clients_that_lack_the_same_share_a_download() -> None:
    state = factored.server({"one": (40, 50)}, lora_rank=2)
    method = FedExLoRA(lora_rank=2)
    factored.run_round(method, state, factored.drifted(state, 2))
    assert method.plan(state, 2, 0) == method.plan(state, 2, 7) == Plan(since=1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return short_run(FedExLoRA(lora_rank=2), tmp_path_factory.mktemp("alone"))


def test_two_workers_give_one_workers_bits(alone: Ended, tmp_path: Path) -> None:
    made = [tiny.build(FedExLoRA(lora_rank=2)) for _ in range(2)]

    def work(workers: Workers) -> Ended:
        return short_run(made[workers.rank].method, tmp_path, workers, made=made[workers.rank])

    server, other = on_two(work)
    assert same_bits(server, alone)
    assert all(torch.equal(value, other.weights[name]) for name, value in alone.weights.items())
    base = tiny.build(FedExLoRA(lora_rank=2)).model
    moved = [name for name, value in alone.weights.items() if not torch.equal(value, base.get_parameter(name))]
    assert any(name.endswith("base_layer.weight") for name in moved)


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(alone: Ended, tmp_path: Path) -> None:
    short_run(FedExLoRA(lora_rank=2), tmp_path, rounds=2)
    assert same_bits(short_run(FedExLoRA(lora_rank=2), tmp_path, rounds=4, resume=True), alone)


@pytest.mark.parametrize("backbone", PLAIN)
def test_the_export_gives_the_runs_logits(backbone: str, tmp_path: Path) -> None:
    """Both where the weight is D_out by D_in and where GPT-2 has it the other way round."""
    ended = short_run(FedExLoRA(lora_rank=2), tmp_path, rounds=2, backbone=backbone)
    model = ended.made.model.eval()
    export_backbone(model, tmp_path / "backbone")
    export_adapter(model, tmp_path / "adapter", str(tmp_path / "backbone"))
    plain = PLAIN[backbone].from_pretrained(tmp_path / "backbone")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    inputs = {name: column for name, column in ended.made.data.test.items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
        fresh = tiny.build(FedExLoRA(lora_rank=2), backbone).model.eval()
        assert not torch.allclose(model(**inputs).logits, fresh(**inputs).logits, rtol=0, atol=1e-3)


def test_the_residual_of_a_conv1d_is_not_transposed(tmp_path: Path) -> None:
    """GPT-2's c_attn holds D_in by D_out: after a round, weight and factors together are the mean of the products."""
    made = tiny.build(FedExLoRA(lora_rank=2), "gpt2", torch.float64)
    made.parameters.load(made.start())
    experiment = tiny.experiment(made, [6, 7, 8], communication=CommunicationOptions(value_dtype="float64"))
    state = simulation.initial_state(experiment)
    layers = [pair.layer for pair in state.layout.pairs]
    before = {layer: state.backbone.weight(layer).clone() for layer in layers}
    trained = []
    train = experiment.trainer.train
    experiment.trainer.train = lambda jobs: [trained.append(done.vector) or done for done in train(jobs)]  # type: ignore
    simulation.run_round(experiment, state, 1, tiny.ONE_WORKER, None)
    assert len(trained) == 3
    for layer in layers:
        assert state.backbone.tensor(f"{layer}.base_layer.weight").shape == before[layer].T.shape
        own = [factored.factors(state, vector)[layer] for vector in trained]
        a, b = [a for a, _ in own], [b for _, b in own]
        target = products.mean_product(a, b, np.full(3, 1 / 3))
        made_weight = factored.effective(state, made.method.scale)[layer]
        np.testing.assert_allclose(made_weight, before[layer].numpy() + made.method.scale * target, rtol=0, atol=1e-12)
        plain = products.mean_of(b, np.full(3, 1 / 3)) @ products.mean_of(a, np.full(3, 1 / 3))
        assert np.linalg.norm(target - plain) > 1e-6  # there was something to add
