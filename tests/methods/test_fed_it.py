from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import ConfigurationError
from fedsim.method import Method
from fedsim.options import CommunicationOptions
from methods.fed_ex_lora import FedExLoRA
from methods.fed_it import FedIT
from methods.flex_lora import FlexLoRA
from methods.flora_na import FLoRANA
from methods.flora_stacking import FLoRAStacking
from methods.lora_fair import LoRAFAIR
from tests import factored
from tests.short_run import short_run

FAMILY = [FedIT, FLoRANA, FedExLoRA, FLoRAStacking, FlexLoRA, LoRAFAIR]
family = pytest.mark.parametrize("kind", FAMILY)


def test_a_round_by_hand() -> None:
    """A of 1 and 3, B of 2 and 4, from 1 and 3 examples.

    The means are A = (1 + 9) / 4 = 2.5 and B = (2 + 12) / 4 = 3.5, with the product 8.75; the mean of the products is
    (2 + 36) / 4 = 9.5. So the error is 0.75 / 9.5.
    """
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    factored.run_round(FedIT(), state, factored.given(state, a=[1, 3], b=[2, 4], examples=[1, 3]))
    a, b = factored.factors(state)["one"]
    assert (a.item(), b.item()) == pytest.approx((2.5, 3.5), abs=1e-14)
    assert state.measures == {"product_error": pytest.approx(0.75 / 9.5, rel=1e-9)}
    assert state.vector.detach()[state.layout.where(["head"])].abs().max() < 1e-14


def test_uniform_weights_on_request() -> None:
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    factored.run_round(FedIT(weighting="uniform"), state, factored.given(state, a=[1, 3], b=[2, 4], examples=[1, 3]))
    a, b = factored.factors(state)["one"]
    assert (a.item(), b.item()) == pytest.approx((2, 3), abs=1e-14)


@family
def test_its_family_refuses_a_model_without_both_factors(kind: type[Method]) -> None:
    layout = factored.server({"one": (2, 2)}, lora_rank=1).layout
    kind().check(layout)
    for lacking in ("A", "B"):
        rest = replace(layout, entries=tuple(e for e in layout.entries if e.segment != lacking))
        with pytest.raises(ConfigurationError, match=kind.__name__):
            kind().check(rest)


@family
@pytest.mark.parametrize("clients", [1, 3])
def test_its_family_takes_one_client_and_clients_that_did_nothing(kind: type[Method], clients: int) -> None:
    """B is zero, as before the first round: nothing is divided by it, and the head is left where it was."""
    method = kind(lora_rank=2)
    state = factored.server({"one": (4, 3)}, lora_rank=2)
    views = state.layout.views(state.vector.data)
    views["one.lora_B.default.weight"].zero_()
    before, head = factored.effective(state, method.scale), state.layout.where(["head"])
    started = state.vector.detach().clone()
    method.prepare(state, 1)
    factored.run_round(method, state, [factored.Client(state.vector.detach().clone())] * clients)
    after = factored.effective(state, method.scale)
    assert state.vector.isfinite().all()
    np.testing.assert_allclose(after["one"], before["one"], rtol=0, atol=1e-12)
    assert state.vector.detach()[head].numpy() == pytest.approx(started[head].numpy(), abs=1e-14)


@family
def test_its_family_takes_over_what_one_client_made(kind: type[Method]) -> None:
    """Into the factors or the weights: what the model computes with is that client's."""
    method = kind(lora_rank=2)
    state = factored.server({"one": (4, 3)}, lora_rank=2)
    clients = factored.drifted(state, 1, by=1.0)
    a, b = factored.factors(state, clients[0].vector)["one"]
    expected = state.backbone.weight("one").numpy() + method.scale * b @ a
    factored.run_round(method, state, clients)
    np.testing.assert_allclose(factored.effective(state, method.scale)["one"], expected, rtol=0, atol=1e-12)
    assert state.measures["product_error"] < 1e-7


@family
def test_its_family_runs_on_half_precision_payloads(kind: type[Method], tmp_path: Path) -> None:
    narrow = CommunicationOptions(value_dtype="bfloat16")
    ended = short_run(kind(lora_rank=2), tmp_path, rounds=2, communication=narrow)
    assert 0 <= float(ended.metrics[-1]["server/product_error"]) < 1
    assert len({row["loss"] for row in ended.metrics}) == 2


def test_all_travels_both_ways(tmp_path: Path) -> None:
    ended = short_run(FedIT(lora_rank=2), tmp_path, rounds=2)
    length = len(ended.result.vector)
    for row in ended.ledger:
        expected = length if int(row["examples"]) else 0
        assert (int(row["upload_values"]), int(row["download_values"])) == (expected, expected)
