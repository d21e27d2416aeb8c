from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.classification import Classification
from fedsim.client import set_client_mode
from fedsim.evaluation import Evaluation, Evaluator
from fedsim.transport import Workers
from methods.lora import LoRA
from tests import tiny


def evaluator(built: tiny.Tiny, batch_size: int) -> Evaluator:
    return Evaluator(built.model, built.parameters, Classification(), built.test, batch_size, nullcontext)


class Alone(Workers):
    """One worker of several, which hears nobody else and remembers what it would have added."""

    def __init__(self, rank: int, count: int) -> None:
        super().__init__(rank, count, tiny.CPU)
        self.parts: list[Tensor] = []

    told: ClassVar[list[bytes]] = []

    def broadcast(self, payloads: Sequence[bytes] | None) -> list[bytes]:
        """What the server worker, which goes first, said last."""
        if payloads is not None:
            Alone.told = list(payloads)
        return Alone.told

    def sum(self, tensor: Tensor) -> Tensor:
        self.parts.append(tensor)
        return tensor


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_metrics_equal_one_forward_of_everything(batch_size: int) -> None:
    """11 test examples: the last batch of 4 is ragged, one of 100 is never full."""
    built = tiny.build()
    found = evaluator(built, batch_size).evaluate(built.start(), tiny.ONE_WORKER)
    built.parameters.load(built.start())
    built.model.eval()
    with torch.no_grad():
        logits = built.model(pixel_values=built.data.test["pixel_values"]).logits
    labels = built.data.test["labels"]
    torch.testing.assert_close(found.outputs["logits"], logits, rtol=0, atol=1e-6)
    assert found.metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-6)
    assert found.metrics["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_parts_of_several_workers_add_up_bit_for_bit(count: int) -> None:
    """Six batches of 2 over up to eight workers, so that some have nothing to do."""
    built = tiny.build()
    whole = evaluator(built, 2).evaluate(built.start(), tiny.ONE_WORKER)
    workers = [Alone(rank, count) for rank in range(count)]
    for worker in workers:
        evaluator(built, 2).evaluate(built.start(), worker)
    total = sum(worker.parts[0] for worker in workers)
    assert torch.equal(total, whole.outputs["logits"])
    rows = torch.stack([(worker.parts[0] != 0).any(1) for worker in workers])
    assert (rows.sum(0) == 1).all()  # every example was counted by exactly one


def test_evaluation_is_without_dropout_and_leaves_no_trace() -> None:
    """Only the model's parameters and its mode change; the next job loads its own start and sets its own mode."""
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=0.5))
    set_client_mode(built.module)
    vector, state = built.start(), torch.get_rng_state()
    built.parameters.gradient.fill_(3.0)

    def evaluate() -> Evaluation:
        return evaluator(built, 4).evaluate(vector, tiny.ONE_WORKER)

    assert torch.equal(evaluate().outputs["logits"], evaluate().outputs["logits"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(vector, built.start())
    assert torch.equal(built.vector, vector)
    assert (built.parameters.gradient == 3).all()
    assert not any(module.training for module in built.model.modules())
    assert not evaluate().outputs["logits"].requires_grad


def test_training_is_the_same_after_an_evaluation() -> None:
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=0.5))
    trainer, job = built.sequential(), built.job(0, 6)
    (before,) = trainer.train([job])
    evaluator(built, 4).evaluate(built.start(9), tiny.ONE_WORKER)
    (after,) = trainer.train([job])
    assert torch.equal(before.vector, after.vector)
