import copy
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import lightning
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from fedsim.client import ClientModule, Recorder, SequentialTrainer, Trained, set_client_mode, weighted_mean
from fedsim.errors import ConfigurationError
from fedsim.method import ClientJob
from fedsim.optimizers import SGD, AdamW, LocalOptimizer
from methods.lora import LoRA
from tests import tiny

DROPOUT = LoRA(lora_rank=2, lora_dropout=0.5)


def plain_loop(job: ClientJob, lr: float, momentum: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a client does, written without any of the engine: a model of its own, torch's optimiser, slices of data."""
    built = tiny.build(dtype=dtype)
    model = built.model.train(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data, parameter.grad = parameter.data.clone(), None
    torch.nn.utils.vector_to_parameters(job.start.clone(), trainable)
    optimizer = torch.optim.SGD(trainable, lr=lr, momentum=momentum)
    for row in job.batches:
        chosen = [int(index) for index in row if index >= 0]
        logits = model(pixel_values=built.data.train["pixel_values"][chosen].to(dtype)).logits
        optimizer.zero_grad()
        functional.cross_entropy(logits, built.data.train["labels"][chosen]).backward()
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(trainable).detach()


def train(built: tiny.Tiny, job: ClientJob, **arguments: Any) -> Tensor:
    (trained,) = built.sequential(**arguments).train([job])
    return trained.vector


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_job_equals_a_plain_torch_loop_bit_for_bit(momentum: float, dtype: torch.dtype) -> None:
    """Ten examples in batches of four, twice: the last batch of an epoch has two rows, padding has none."""
    built = tiny.build(dtype=dtype)
    job = built.job(0, 10, epochs=2)
    assert (job.batches[2] >= 0).sum() == 2
    trained = train(built, job, optimizer=SGD(0.1, momentum))
    assert torch.equal(trained, plain_loop(job, 0.1, momentum, dtype))
    assert (trained != job.start).double().mean() > 0.9


@pytest.mark.parametrize("optimizer", tiny.LOCAL_OPTIMIZERS)
def test_jobs_are_independent_of_their_order(optimizer: str) -> None:
    """No momentum, dropout or parameter of one client reaches the next."""
    built = tiny.build(DROPOUT)
    jobs = [built.job(client, examples, start=built.start(client)) for client, examples in enumerate((5, 9, 1))]
    trainer = built.sequential(tiny.LOCAL_OPTIMIZERS[optimizer])

    def vectors(order: list[int]) -> dict[int, Tensor]:
        return {t.job.client: t.vector for t in trainer.train([jobs[number] for number in order])}

    forwards, backwards = vectors([0, 1, 2]), vectors([2, 1, 0])
    assert list(forwards) == [0, 1, 2]
    assert all(torch.equal(forwards[client], backwards[client]) for client in forwards)
    assert torch.equal(vectors([1])[1], forwards[1])


def test_a_result_is_the_callers_to_keep() -> None:
    built = tiny.build()
    trainer = built.sequential()
    first, second = trainer.train([built.job(0, 8), built.job(1, 8)])
    assert not torch.equal(first.vector, second.vector)
    assert torch.equal(train(built, built.job(0, 8)), first.vector)
    assert torch.equal(first.job.start, built.start())


def test_rate_scale_multiplies_the_step_of_each_entry() -> None:
    built = tiny.build(dtype=torch.float64)
    scale = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64).repeat(len(built.vector) // 3)
    plain = built.job(0, 4)
    scaled = built.job(0, 4, rate_scale=scale)
    step = train(built, plain) - plain.start
    torch.testing.assert_close(train(built, scaled) - plain.start, scale * step, rtol=0, atol=1e-14)
    assert torch.equal(train(built, scaled)[::3], plain.start[::3])


def proximal(vector: Tensor, reference: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    return tensors["mu"] / 2 * (vector - reference).square().sum()


class ProximalByHand(ClientModule):
    """FedProx as a user would write it without the engine's penalty."""

    mu: float
    reference: Tensor

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        flat = torch.cat([p.flatten() for p in self.parameters() if p.requires_grad])
        return super().training_step(batch, batch_idx) + self.mu / 2 * (flat - self.reference).square().sum()


def test_a_penalty_equals_adding_it_to_the_loss() -> None:
    built = tiny.build(dtype=torch.float64)
    mu, reference = torch.tensor(0.7, dtype=torch.float64), built.start(1)
    job = built.job(0, 10, epochs=2, reference=reference, penalty_tensors={"mu": mu})
    trained = train(built, job, penalty=proximal)
    module = ProximalByHand(built.model)
    module.mu, module.reference = 0.7, reference
    torch.testing.assert_close(trained, train(built, job, module=module), rtol=0, atol=1e-12)
    assert not torch.allclose(trained, train(built, job), rtol=0, atol=1e-3)


def masked_jobs(built: tiny.Tiny) -> tuple[Tensor, list[ClientJob]]:
    """A mask of zeros and ones, and jobs under it: one with a rate scale, and a neighbour where everything moves."""
    mask = (torch.arange(len(built.vector)) % 3 > 0).to(built.vector)
    fields = {"reference": built.start(1), "penalty_tensors": {"mu": torch.tensor(0.7)}}
    return mask, [
        built.job(0, 10, gradient_mask=mask, **fields),
        built.job(1, 7, gradient_mask=mask, rate_scale=0.5 + mask, **fields),
        built.job(2, 12, **fields),
    ]


def require_frozen(mask: Tensor, results: Iterable[Trained]) -> None:
    """Under a mask the zeros keep every bit and the ones move; without one, everything moves."""
    found = list(results)
    assert len(found) == 3
    for trained in found:
        moved = trained.vector != trained.job.start
        assert moved[mask == 1].double().mean() > 0.9
        if trained.job.gradient_mask is None:
            assert moved[mask == 0].double().mean() > 0.9
        else:
            assert not moved[mask == 0].any()


@pytest.mark.parametrize("slots", [0, 2], ids=["one after another", "packed"])
@pytest.mark.parametrize("rule", [SGD(0.05, 0.9, 0.01), AdamW(0.01, weight_decay=0.1)], ids=["sgd", "adamw"])
def test_masked_entries_keep_every_bit(rule: LocalOptimizer, slots: int) -> None:
    """Whatever would move them: gradient, momentum, penalty, weight decay."""
    built = tiny.build()
    mask, jobs = masked_jobs(built)
    trainer = built.packed(slots, rule, proximal) if slots else built.sequential(rule, proximal)
    require_frozen(mask, trainer.train(jobs))


class WithDecay(ClientModule):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)


def test_masked_entries_keep_every_bit_under_a_modules_own_optimizer() -> None:
    built = tiny.build()
    mask, jobs = masked_jobs(built)
    require_frozen(mask, built.sequential(penalty=proximal, module=WithDecay(built.model)).train(jobs))


def test_the_loss_that_is_logged_is_without_the_penalty() -> None:
    built = tiny.build()
    job = built.job(0, 4, reference=built.start(1), penalty_tensors={"mu": torch.tensor(100.0)})
    (with_penalty,) = built.sequential(penalty=proximal).train([job])
    (without,) = built.sequential().train([job])
    assert with_penalty.logged == without.logged != {}


class WithAdam(ClientModule):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


def test_a_module_is_stepped_by_its_own_optimizer_fresh_for_every_job() -> None:
    """Torch's Adam is AdamW without decay, which stands here as the expected result."""
    built = tiny.build(dtype=torch.float64)
    jobs = [built.job(client, 10) for client in range(2)]
    own = list(built.sequential(SGD(5.0), module=WithAdam(built.model)).train(jobs))
    flat = list(built.sequential(AdamW(0.01)).train(jobs))
    for left, right in zip(own, flat, strict=True):
        torch.testing.assert_close(left.vector, right.vector, rtol=0, atol=1e-12)


class Sophisticated(ClientModule):
    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.SGD(self.parameters(), lr=0.1)}


def test_what_is_no_optimizer_is_refused_in_words() -> None:
    built = tiny.build()
    with pytest.raises(ConfigurationError, match=r"Sophisticated\.configure_optimizers returned dict"):
        train(built, built.job(0, 4), module=Sophisticated(built.model))


class OnlyTrainingStep(lightning.LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.backbone(pixel_values=batch["pixel_values"]).logits
        self.log_dict({"step": float(batch_idx), "rows": len(batch["labels"])}, prog_bar=True, on_epoch=True)
        return functional.cross_entropy(logits, batch["labels"])


def test_a_module_with_training_step_alone_trains_like_ours() -> None:
    built = tiny.build()
    job = built.job(0, 10)
    (ours,) = built.sequential().train([job])
    (theirs,) = built.sequential(module=OnlyTrainingStep(built.model)).train([job])
    torch.testing.assert_close(theirs.vector, ours.vector, rtol=0, atol=1e-6)
    assert theirs.logged == {"step": pytest.approx((0 * 4 + 1 * 4 + 2 * 2) / 10), "rows": pytest.approx(3.6)}


def test_a_training_step_may_return_its_loss_in_a_dict_and_must_return_one() -> None:
    """As under a stock Trainer; a step without a loss is answered, not met with a traceback."""
    built = tiny.build()
    (ours,) = built.sequential().train([built.job(0, 4)])
    for wrap, works in ((lambda loss: {"loss": loss, "extra": 1}, True), (lambda loss: None, False)):

        class Wrapping(OnlyTrainingStep):
            def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
                return wrap(super().training_step(batch, batch_idx))  # noqa: B023

        trainer = built.sequential(module=Wrapping(built.model))
        if works:
            (theirs,) = trainer.train([built.job(0, 4)])
            torch.testing.assert_close(theirs.vector, ours.vector, rtol=0, atol=1e-6)
        else:
            with pytest.raises(ConfigurationError, match="without a loss"):
                list(trainer.train([built.job(0, 4)]))


def test_the_logged_loss_is_a_mean_over_examples() -> None:
    """With a learning rate of almost nothing it is the loss at the start, ragged last batch or not."""
    built = tiny.build(dtype=torch.float64)
    job = built.job(0, 10)
    (trained,) = built.sequential(SGD(1e-300)).train([job])
    built.parameters.load(job.start)
    rows = torch.from_numpy(job.batches.reshape(-1))
    losses = built.module.example_losses(built.train.batch(rows[rows >= 0]))
    assert trained.logged == {"train/loss": pytest.approx(losses.mean().item(), rel=1e-12)}


def test_the_recorder_weighs_by_examples_and_starts_anew() -> None:
    recorder = Recorder()
    recorder.weight = 4
    recorder.log("loss", torch.tensor(1.0, requires_grad=True), prog_bar=True, on_step=False, on_epoch=True)
    recorder.log_dict({"loss": 2, "other": 5.0})
    recorder.weight = 2
    recorder.log("loss", 4.0)
    assert recorder.means() == {"loss": pytest.approx((4 + 8 + 8) / 10), "other": 5.0}
    assert recorder.means() == {}
    recorder.log("loss", 3.0)
    assert recorder.means() == {"loss": 3.0}


@pytest.mark.parametrize("value", [MulticlassAccuracy(3), "0.5", None])
def test_the_recorder_refuses_what_is_no_number(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="log its value"):
        Recorder().log("accuracy", value)


def test_padding_weighs_nothing_and_nothing_at_all_is_zero() -> None:
    losses = torch.tensor([[1.0, 3.0, 100.0], [7.0, 8.0, 9.0]])
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert weighted_mean(losses, weight).tolist() == [2.0, 0.0]
    assert weighted_mean(losses, None).tolist() == pytest.approx([104 / 3, 8])


def test_the_module_trains_under_a_stock_trainer_and_changes_only_adapter_and_head() -> None:
    built = tiny.build()
    before = copy.deepcopy(built.model.state_dict())
    module = ClientModule(built.model, optimizer=SGD(0.1))
    rows = [{name: column[row] for name, column in built.data.train.items()} for row in range(8)]
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers of the loader
        trainer.fit(module, DataLoader(rows, batch_size=4))  # type: ignore[arg-type]
    assert trainer.global_step == 2
    after = built.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, p in built.model.named_parameters() if p.requires_grad}


def test_on_a_client_only_loras_dropout_is_on() -> None:
    built = tiny.build(DROPOUT)
    built.module.train()
    set_client_mode(built.module)
    active = {name for name, module in built.module.named_modules() if module.training}
    expected = {
        f"{name}.{suffix}" if suffix else name
        for name, layer in built.module.named_modules()
        if isinstance(layer, LoraLayer)
        for suffix in ("lora_dropout", "lora_dropout.default")
    }
    assert active == expected
    assert len(expected) == 12


def test_the_backbones_dropout_is_off_while_clients_train() -> None:
    """It is 0.4 in this backbone: with LoRA's at zero, another seed must not change anything."""
    built = tiny.build()
    left, right = (train(built, built.job(0, 10, seed=seed)) for seed in (1, 2))
    assert torch.equal(left, right)


def test_the_backbones_dropout_can_be_asked_for() -> None:
    """Attention's and the layers', as a model in training mode has it; statistics of batches stay off."""
    built = tiny.build()
    built.module.extra = nn.BatchNorm1d(2)
    set_client_mode(built.module, backbone_dropout=True)
    assert {name for name, module in built.module.named_modules() if not module.training} == {"extra"}
    trainer = SequentialTrainer(
        built.module, built.parameters, built.train, SGD(0.05), None, nullcontext, backbone_dropout=True
    )

    def trained(seed: int) -> Tensor:
        (result,) = trainer.train([built.job(0, 10, seed=seed)])
        return result.vector.clone()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_loras_dropout_depends_on_the_jobs_seed_alone() -> None:
    built = tiny.build(DROPOUT)

    def trained(seed: int, before: int) -> Tensor:
        torch.manual_seed(before)
        return train(built, built.job(0, 10, seed=seed))

    assert torch.equal(trained(1, before=5), trained(1, before=6))
    assert not torch.equal(trained(1, before=5), trained(2, before=5))


def test_training_leaves_torchs_random_state_alone() -> None:
    built = tiny.build(DROPOUT)
    state = torch.get_rng_state()
    list(built.sequential().train([built.job(0, 10)]))
    assert torch.equal(torch.get_rng_state(), state)


def test_each_result_comes_as_soon_as_it_is_done() -> None:
    """So that a worker never holds more than one trained vector of its clients."""
    built = tiny.build()
    results = built.sequential().train([built.job(0, 8), built.job(1, 8)])
    first = next(iter(results))
    assert isinstance(first, Trained)
    assert torch.equal(built.vector, first.vector)


def test_a_module_that_logs_a_whole_batch_is_answered_before_it_trains() -> None:
    class LogsRows(OnlyTrainingStep):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            self.log("rows", batch["weight"])
            return super().training_step(batch, batch_idx)

    built = tiny.build()
    with pytest.raises(ConfigurationError, match=r"logs 'rows' of shape \(2,\)"):
        built.sequential(module=LogsRows(built.model)).dry_run()
