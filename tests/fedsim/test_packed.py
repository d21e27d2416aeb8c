from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from fedsim.client import ClientModule, Trained
from fedsim.method import ClientJob
from fedsim.packed import _dropout, _Slot, why_not_packed
from fedsim.parameters import Layout
from methods.flasc import FLASC
from methods.lora import LoRA
from tests import tiny

SLOTS = 3
SIZES = (9, 2, 14, 5, 1, 7, 12)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def proximal(vector: Tensor, reference: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    return tensors["mu"] / 2 * (vector - reference).square().sum() + (tensors["pull"] * vector).sum()


def jobs_of(built: tiny.Tiny, fields: Callable[[int], dict[str, Any]] = lambda _: {}) -> list[ClientJob]:
    return [built.job(client, size, start=built.start(client), **fields(client)) for client, size in enumerate(SIZES)]


def by_client(results: Any) -> dict[int, Trained]:
    return {trained.job.client: trained for trained in results}


def require_equal(
    built: tiny.Tiny, jobs: list[ClientJob], optimizer: str, penalty: Any = None, clip_norm: float | None = None
) -> None:
    """Every client's packed result is where the sequential one is, measured by how far it went."""
    rule = tiny.LOCAL_OPTIMIZERS[optimizer]
    alone = by_client(built.sequential(rule, penalty, clip_norm=clip_norm).train(jobs))
    packed = by_client(built.packed(SLOTS, rule, penalty, clip_norm).train(jobs))
    assert sorted(packed) == sorted(alone) == [job.client for job in jobs]
    for client, expected in alone.items():
        update = expected.vector - expected.job.start
        assert update.norm() > 0
        error = (packed[client].vector - expected.vector).norm() / update.norm()
        assert error <= TOLERANCE[built.vector.dtype]
        assert packed[client].logged == pytest.approx(expected.logged, abs=1e-6)


@every_dtype
@pytest.mark.parametrize("optimizer", tiny.LOCAL_OPTIMIZERS)
def test_packed_equals_one_after_another(dtype: torch.dtype, optimizer: str) -> None:
    """Seven clients of 1 to 14 examples over three slots, so that slots change hands and stand empty."""
    built = tiny.build(dtype=dtype)
    require_equal(built, jobs_of(built), optimizer)


@every_dtype
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_packed_equals_one_after_another_from_flascs_download(dtype: torch.dtype, optimizer: str) -> None:
    method = FLASC(lora_rank=2, upload_density=1 / 16)
    built = tiny.build(method, dtype=dtype)
    state = tiny.server_state(built.start().tolist(), built.parameters.layout)
    download = method.download(state, tiny.shared_of(state), method.plan(state, 1, 0))
    start = download.values.to_dense().to(dtype)
    jobs = [built.job(client, size, start=start, epochs=2) for client, size in enumerate(SIZES)]
    require_equal(built, jobs, optimizer)


@every_dtype
def test_packed_equals_one_after_another_with_clipped_gradients(dtype: torch.dtype) -> None:
    """To a norm below all of theirs, so that every step of plain SGD is equally long; masked entries count not."""
    built, clip_norm = tiny.build(dtype=dtype), 0.01
    jobs = jobs_of(built)
    require_equal(built, jobs, "sgd", clip_norm=clip_norm)
    plain = tiny.SGD(0.1, 0.0)
    mask = (torch.arange(len(built.vector)) % 2).to(dtype)
    (job,) = [built.job(0, 4, start=built.start(0), gradient_mask=mask)]
    for trainer in (built.sequential(plain, clip_norm=clip_norm), built.packed(SLOTS, plain, clip_norm=clip_norm)):
        (trained,) = trainer.train([job])
        assert float((trained.vector - job.start).norm()) == pytest.approx(0.1 * clip_norm, rel=1e-3)


@pytest.mark.parametrize("segments", [["B", "head"], ["A"], ["head"]])
def test_trainers_follow_when_p_is_made_of_other_segments(segments: list[str]) -> None:
    """Both were made before. A smaller P trains as the whole one does under a mask, and back again."""
    built = tiny.build(dtype=torch.float64)
    trainers = (built.sequential(), built.packed(SLOTS))
    start, whole = built.start(), built.parameters.layout
    places = whole.where(segments)
    mask = torch.zeros_like(start).index_fill(0, places, 1)

    def ends(trainer: Any, start: Tensor, **fields: Any) -> list[Tensor]:
        jobs = [built.job(client, size, start=start, **fields) for client, size in enumerate(SIZES)]
        return [trained.vector for _, trained in sorted(by_client(trainer.train(jobs)).items())]

    expected = ends(trainers[0], start, gradient_mask=mask)
    assert (expected[0] != start).any()
    for trainer in trainers:
        built.parameters.load(start)
        built.parameters.activate(segments)
        for ended, masked in zip(ends(trainer, start[places]), expected, strict=True):
            torch.testing.assert_close(ended, masked[places], rtol=0, atol=1e-12)
        built.parameters.activate(None)
        for ended, masked in zip(ends(trainer, start, gradient_mask=mask), expected, strict=True):
            torch.testing.assert_close(ended, masked, rtol=0, atol=1e-12)


@every_dtype
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_packed_equals_one_after_another_under_masks_rates_and_penalties(dtype: torch.dtype, optimizer: str) -> None:
    """Each on some clients only: a slot without a mask or scale has ones while its neighbour's is at work."""
    built = tiny.build(dtype=dtype)
    places = torch.arange(len(built.vector))

    def fields(client: int) -> dict[str, Any]:
        found: dict[str, Any] = {"reference": built.start(50 + client)}
        found["penalty_tensors"] = {
            "mu": torch.tensor(0.1 * client, dtype=dtype),
            "pull": 0.1 * built.start(80 + client),
        }
        if client % 2:
            found["gradient_mask"] = (places % (client + 1) > 0).to(dtype)
        if client % 3 == 0:
            found["rate_scale"] = 0.5 + (places % 2).to(dtype)
        return found

    require_equal(built, jobs_of(built, fields), optimizer, proximal)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backbone", ["gpt2", "roberta", "gpt2_lm", "llama"])
def test_other_architectures_pack_too(backbone: str, dtype: torch.dtype) -> None:
    """GPT-2 adapts a Conv1D; Roberta's head is two linear layers that train whole; language models have none."""
    built = tiny.build(LoRA(lora_rank=2), backbone, dtype)
    assert why_not_packed(built.module, built.parameters.layout) is None
    require_equal(built, jobs_of(built), "sgd")


@pytest.mark.parametrize("lora_dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_clients_bits_do_not_depend_on_its_neighbours(lora_dropout: float, dtype: torch.dtype) -> None:
    """Alone, among others, and in every slot: so workers may share a cohort as they like."""
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=lora_dropout), dtype=dtype)
    job = built.job(0, 10, start=built.start(1), epochs=2)
    (alone,) = built.packed(SLOTS).train([job])
    for before in range(SLOTS):
        longer = [built.job(10 + n, 24, start=built.start(10 + n), epochs=2) for n in range(before)]
        shorter = [built.job(20 + n, 3, start=built.start(20 + n)) for n in range(4)]
        among = by_client(built.packed(SLOTS).train([*longer, *shorter, job]))[0]
        assert torch.equal(among.vector, alone.vector)
        assert among.logged == alone.logged


@pytest.mark.parametrize("optimizer", tiny.LOCAL_OPTIMIZERS)
@every_dtype
def test_a_clients_bits_do_not_depend_on_what_its_neighbours_may_move(optimizer: str, dtype: torch.dtype) -> None:
    """A mask or a rate scale next door, or an empty slot: the step must round as if nobody were there."""
    built = tiny.build(dtype=dtype)
    rule, places = tiny.LOCAL_OPTIMIZERS[optimizer], torch.arange(len(built.vector))

    def job(client: int, examples: int, **fields: Any) -> ClientJob:
        tensors = {"mu": torch.tensor(0.1 * client, dtype=dtype), "pull": 0.1 * built.start(80 + client)}
        start = built.start(client)
        return built.job(
            client, examples, start=start, reference=built.start(50), penalty_tensors=tensors, epochs=2, **fields
        )

    masked = job(10, 14, gradient_mask=(places % 2).to(dtype))
    scaled = job(11, 9, rate_scale=0.5 + (places % 3).to(dtype))
    for ours in (job(1, 10), job(1, 10, gradient_mask=(places % 3 > 0).to(dtype))):
        (alone,) = built.packed(SLOTS, rule, proximal).train([ours])
        for neighbours in ([masked], [scaled, masked], [job(12, 3)]):
            among = by_client(built.packed(SLOTS, rule, proximal).train([*neighbours, ours]))[1]
            assert torch.equal(among.vector, alone.vector)


def test_a_trainer_trains_the_next_cohort_afresh() -> None:
    """Nothing of the first one stays in the slots: no momentum, no vector."""
    built = tiny.build()
    trainer, jobs = built.packed(SLOTS), jobs_of(built)
    first, second = by_client(trainer.train(jobs)), by_client(trainer.train(jobs[::-1]))
    assert all(torch.equal(first[client].vector, second[client].vector) for client in first)
    assert torch.equal(jobs[0].start, built.start(0))


def test_the_model_is_itself_again_after_training() -> None:
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=0.5))
    before = built.vector.clone()
    list(built.packed(SLOTS).train(jobs_of(built)))
    assert torch.equal(built.vector, before)
    assert not any("forward" in vars(module) for module in built.model.modules())
    assert not built.parameters.gradient.any()


def test_a_trainer_that_was_left_midway_trains_the_next_cohort_afresh() -> None:
    """A round that raises closes the generator at its yield, with clients still in the slots."""
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=0.5))
    trainer, jobs = built.packed(SLOTS), jobs_of(built)
    results = trainer.train(jobs)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not any("forward" in vars(module) for module in built.model.modules())
    again, fresh = by_client(trainer.train(jobs[1:])), by_client(built.packed(SLOTS).train(jobs[1:]))
    assert sorted(again) == [job.client for job in jobs[1:]]
    for client, expected in fresh.items():
        assert torch.equal(again[client].vector, expected.vector)
        assert again[client].logged == expected.logged


def test_the_model_is_itself_while_a_result_is_looked_at() -> None:
    """Between two results anybody may run it on one plain batch."""
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=0.5))
    inputs = built.train.batch(torch.arange(5))["pixel_values"]

    def logits() -> Tensor:
        with torch.no_grad():
            return built.model.eval()(pixel_values=inputs).logits

    built.parameters.load(built.start(9))
    before, seen = logits(), 0
    for _ in built.packed(SLOTS).train(jobs_of(built)):
        assert not any("forward" in vars(module) for module in built.model.modules())
        assert torch.equal(logits(), before)
        seen += 1
    assert seen == len(SIZES)


class Breaks(ClientModule):
    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        super().example_losses(batch)
        raise RuntimeError("in the middle of a step")


def test_the_model_is_itself_after_a_step_that_broke() -> None:
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=0.5))
    built.module = Breaks(built.model)
    with pytest.raises(RuntimeError, match="in the middle"):
        list(built.packed(SLOTS).train(jobs_of(built)))
    assert not any("forward" in vars(module) for module in built.model.modules())


def test_one_slot_and_more_slots_than_jobs_work_too() -> None:
    built = tiny.build(dtype=torch.float64)
    jobs = jobs_of(built)[:2]
    alone = by_client(built.sequential().train(jobs))
    for slots in (1, 5):
        for client, trained in by_client(built.packed(slots).train(jobs)).items():
            torch.testing.assert_close(trained.vector, alone[client].vector, rtol=0, atol=1e-12)
    assert list(built.packed(2).train([])) == []


def test_dropout_keeps_the_mean_and_drops_the_stated_share() -> None:
    built = tiny.build()
    slots: list[_Slot | None] = [_Slot(built.job(client, 4), tiny.CPU) for client in range(2)]
    outputs = _dropout(0.3, [*slots, None], torch.ones(6, 5000))
    kept = outputs[:4] != 0
    assert torch.equal(outputs[:4][kept], torch.full_like(outputs[:4][kept], 1 / 0.7))
    assert kept.double().mean() == pytest.approx(0.7, abs=4 * (0.21 / kept.numel()) ** 0.5)
    agree = (kept[:2] == kept[2:]).double().mean()  # two slots agree by chance alone: 0.7^2 + 0.3^2
    assert agree == pytest.approx(0.58, abs=0.02)


def test_dropout_has_the_same_distribution_as_one_after_another() -> None:
    """The same draws it cannot have: a packed slot draws for padding too. Mean and spread over 250 seeds agree."""
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=0.5), dtype=torch.float64)
    jobs = [built.job(seed, 3, seed=seed, batches=built.job(0, 3).batches) for seed in range(250)]
    found = []
    for trainer in (built.sequential(), built.packed(10)):
        results = by_client(trainer.train(jobs))
        found.append(torch.stack([results[seed].vector - jobs[0].start for seed in range(250)]))
    (left, right), layout = found, built.parameters.layout
    head = slice(layout.layers[-1][0], None)
    spread = left[:, head].std(0)
    assert (spread > 0).all()
    standard_error = spread * (2 / len(jobs)) ** 0.5
    assert ((left[:, head].mean(0) - right[:, head].mean(0)).abs() < 5 * standard_error).all()
    assert (right[:, head].std(0) / spread - 1).abs().max() < 0.35
    assert not torch.equal(left, right)


class OwnStep(ClientModule):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)


class OwnOptimizer(ClientModule):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OwnLosses(ClientModule):
    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return 2 * super().example_losses(batch)


class NotOurs(lightning.LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ClientModule, None),
        (OwnLosses, None),
        (OwnStep, "OwnStep overrides training_step"),
        (OwnOptimizer, "OwnOptimizer overrides configure_optimizers"),
        (NotOurs, "NotOurs is no ClientModule: it gives no example_losses"),
    ],
)
def test_why_a_module_is_not_packed(kind: Any, reason: str | None) -> None:
    built = tiny.build()
    assert why_not_packed(kind(built.model), built.parameters.layout) == reason


@pytest.mark.parametrize(
    ("trains", "reason"),
    [
        ("layernorm", "layernorm_before.weight trains and belongs to no nn.Linear that trains whole"),
        ("patch_embeddings", "projection.weight trains and belongs to no nn.Linear that trains whole"),
    ],
)
def test_what_trains_outside_linear_layers_is_not_packed(trains: str, reason: str) -> None:
    built = tiny.build()
    chosen = next(name for name, _ in built.model.named_parameters() if trains in name and name.endswith("weight"))
    built.model.get_parameter(chosen).requires_grad_(True)
    found = why_not_packed(built.module, Layout.of(built.model))
    assert found is not None
    assert found.endswith(reason)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_linear_layer_that_trains_in_part_is_not_packed(frozen: str) -> None:
    """The packed layer would leave out a frozen bias, or look for a weight that no client has."""
    built = tiny.build()
    head = built.model.get_parameter(built.parameters.layout.entries[-1].name.replace("bias", frozen))
    head.requires_grad_(False)
    assert why_not_packed(built.module, Layout.of(built.model)) is not None
