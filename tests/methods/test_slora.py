from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.arrangement import Arrangement
from fedsim.codec import HEADER_BYTES
from fedsim.errors import ConfigurationError
from fedsim.method import ServerState
from fedsim.options import ClientOptions, RunOptions, ServerOptions
from fedsim.server import enter_stage, initial_state
from methods.slora import SLoRA, stage_one_mask
from tests import factored, tiny
from tests.pair import on_two
from tests.rounds import rounds
from tests.short_run import Ended, same_bits, short_run

BACKBONE, HEAD = 4320, 51
"""Of the tiny ViT: weights of the backbone, and of the head."""


def stages(method: SLoRA, backbone: str = "vit") -> tuple[ServerState, ServerState, tiny.Tiny]:
    """A server that moved every weight in stage one, and the server that stage two begins with."""
    made = tiny.build(method, backbone, torch.float64)
    made.parameters.activate(method.segments(1))
    experiment = tiny.experiment(made, [4])
    before = initial_state(experiment)
    before.vector.data += 0.1 * torch.randn(len(before.vector), generator=torch.Generator().manual_seed(1)).double()
    before.tensors["seen"] = torch.ones(1)
    return before, enter_stage(experiment, before, method.stage_one_rounds + 1, True), made


def changes(before: ServerState, transposed: bool = False) -> dict[str, np.ndarray]:
    """What stage one changed of every adapted weight, (D_out, D_in)."""
    after, initial = (before.layout.views(v.detach()) for v in (before.vector, before.initial))
    names = [name for name in after if name.endswith("base_layer.weight")]
    found = {name.removesuffix(".base_layer.weight"): (after[name] - initial[name]).numpy() for name in names}
    return {name: change.T if transposed else change for name, change in found.items()}


@pytest.mark.parametrize("backbone", ["vit", "gpt2"])
@pytest.mark.parametrize("lora_rank", [2, 4])
def test_stage_two_begins_with_the_best_low_rank_of_the_change(backbone: str, lora_rank: int) -> None:
    """Of each module's own, by numpy: no matrix of that rank is nearer. GPT-2 holds its weights the other way round."""
    method = SLoRA(lora_rank=lora_rank, lora_alpha=3.0)
    before, after, _ = stages(method, backbone)
    moved = changes(before, transposed=backbone == "gpt2")
    assert set(moved) == set(factored.factors(after))
    for layer, (a, b) in factored.factors(after).items():
        assert (b.shape[1], a.shape[0]) == (lora_rank, lora_rank)
        sizes = np.linalg.svd(moved[layer], compute_uv=False)
        off = np.linalg.norm(moved[layer] - 3.0 / lora_rank * b @ a)
        assert off == pytest.approx(np.sqrt(np.square(sizes[lora_rank:]).sum()), rel=1e-9)
        np.testing.assert_allclose(a @ a.T, np.eye(lora_rank), atol=1e-12)  # all of the size is in B
    (note,) = after.notes
    assert note.startswith(f"stage two: rank {lora_rank} holds ")


def test_a_change_of_low_rank_by_hand() -> None:
    """W gains 6 at one place: U S V' is 6 there, so that A is one there up to its sign, and B holds 6 over the scale.

    At alpha 4 and rank 2 the scale is 2: B is 3. The second rank has nothing to hold.
    """
    method = SLoRA(lora_rank=2, lora_alpha=4.0)
    before, after, _ = stages(method)
    before.vector.data.copy_(before.initial)
    name = f"{after.layout.pairs[0].layer}.base_layer.weight"
    before.layout.views(before.vector.data)[name][1, 2] += 6
    method.begin_stage(before, after)
    a, b = next(iter(factored.factors(after).values()))
    sign = np.sign(a[0, 2])
    np.testing.assert_allclose(a[0], sign * np.eye(16)[2], atol=1e-14)
    np.testing.assert_allclose(b[:, 0], sign * 3 * np.eye(16)[1], atol=1e-14)
    np.testing.assert_allclose(b[:, 1], 0, atol=1e-14)


def test_a_rank_above_the_weights_own_holds_all_of_it() -> None:
    """16 by 16 under rank 20: four columns of B are left at zero."""
    before, after, _ = stages(SLoRA(lora_rank=20, lora_alpha=20.0))
    moved = changes(before)
    for layer, (a, b) in factored.factors(after).items():
        np.testing.assert_allclose(b @ a, moved[layer], atol=1e-12)
        assert not b[:, 16:].any()
        assert a[16:].any()
    assert after.notes == ["stage two: rank 20 holds 100.0% of the adapted weights' change"]


def test_the_head_goes_on_and_everything_else_is_reset() -> None:
    method = SLoRA(lora_rank=2)
    before, after, made = stages(method)
    fresh = tiny.build(method, dtype=torch.float64).model
    assert after.layout.segments() == {"A": 192, "B": 192, "head": HEAD}
    head = [entry.name for entry in after.layout.entries if entry.segment == "head"]
    old, new = (state.layout.views(state.vector.detach()) for state in (before, after))
    assert all(torch.equal(new[name], old[name]) for name in head)
    names = [name for name, _ in fresh.named_parameters() if ".lora_" not in name and name not in head]
    assert len(names) > 20
    assert all(torch.equal(made.model.get_parameter(name), fresh.get_parameter(name)) for name in names)
    assert after.optimizer.state == {}
    assert list(after.tensors) == ["seen"]


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_a_seed_gives_the_mask(density: float) -> None:
    """So many of the backbone's weights, from all over it, and all of the head."""
    made = tiny.build(SLoRA(lora_rank=2))
    made.parameters.activate(["backbone", "head"])
    layout = made.parameters.layout
    assert layout.segments() == {"backbone": BACKBONE, "head": HEAD}
    mask = stage_one_mask(layout, density, 11)
    assert torch.equal(mask, mask.unique())
    inside = torch.isin(mask, layout.where(["backbone"]))
    assert int(inside.sum()) == int(density * BACKBONE)
    assert torch.equal(mask[~inside], layout.where(["head"]))
    assert abs(float(mask[inside].double().mean()) / BACKBONE - 0.5) < 0.05
    stage_one_mask.cache_clear()
    assert torch.equal(stage_one_mask(layout, density, 11), mask)
    assert not torch.equal(stage_one_mask(layout, density, 12), mask)


def test_two_stages_of_rounds() -> None:
    """Stage one: the mask trains, travels without indices and moves, under the stage's rate and weight decay too.

    Its seed goes down once. Stage two: the whole of A, B and the head, from where the SVD put it, at server.lr.
    """
    method = SLoRA(lora_rank=2, stage_one_density=0.25, stage_one_rounds=2, stage_one_lr=0.5)
    server = ServerOptions("adamw", lr=0.01, weight_decay=0.1)
    seen: set[int] = set()
    kept = BACKBONE // 4 + HEAD
    for played in rounds(method, 4, dtype=torch.float32, server=server):
        state = played.state
        if played.number > 2:
            assert state.layout.segments() == {"A": 192, "B": 192, "head": HEAD}
            dense = HEADER_BYTES + 4 * (2 * 192 + HEAD)
            assert {(e.upload_bytes, e.download_bytes) for e in played.entries} == {(dense, dense)}
            assert bool(played.notes) == (played.number == 3)
            assert state.optimizer.param_groups[0]["lr"] == 0.01
            assert all(done.job.start.abs().max() > 0.01 for done in played.trained)
            continue
        assert state.optimizer.param_groups[0]["lr"] == 0.5
        mask = method._mask(state.layout, state.seed)
        frozen = torch.ones(state.layout.length, dtype=torch.bool)
        frozen[mask] = False
        assert len(mask) == kept
        for vector in (state.vector, *(v for done in played.trained for v in (done.job.start, done.vector))):
            assert torch.equal(vector[frozen], state.initial[frozen])
        assert (state.vector != state.initial)[mask].sum() > 0.9 * len(mask)
        for entry in played.entries:
            assert entry.upload_bytes == HEADER_BYTES + 4 * kept
            seed = 0 if entry.client in seen else HEADER_BYTES + 8
            assert entry.download_bytes == HEADER_BYTES + 4 * kept + seed
            seen.add(entry.client)
    assert len(seen) < 2 * len(played.entries)  # some came twice


def test_at_density_one_everything_trains_and_there_is_no_mask() -> None:
    (played,) = rounds(SLoRA(lora_rank=2, stage_one_density=1.0), 1)
    dense = HEADER_BYTES + 8 * (BACKBONE + HEAD)
    assert {(e.upload_bytes, e.download_bytes) for e in played.entries} == {(dense, dense)}


METHOD = SLoRA(lora_rank=2, stage_one_rounds=3, stage_one_density=0.25)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return short_run(METHOD, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("done", [2, 3])
def test_a_run_goes_on_across_the_stages(done: int, alone: Ended, tmp_path: Path) -> None:
    """From a checkpoint within stage one, and from its last."""
    short_run(METHOD, tmp_path, rounds=done)
    assert same_bits(short_run(METHOD, tmp_path, resume=True), alone)


def test_two_workers_change_stages_together(alone: Ended, tmp_path: Path) -> None:
    made = [tiny.build(METHOD) for _ in range(2)]
    server, other = on_two(lambda workers: short_run(METHOD, tmp_path, workers, made=made[workers.rank]))
    assert same_bits(server, alone)
    assert all(torch.equal(value, other.weights[name]) for name, value in alone.weights.items())


def test_its_label() -> None:
    assert SLoRA().label == "SLoRA, stage one 1/10"
    assert SLoRA(stage_one_density=1.0).label == "SLoRA, stage one at full rank"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stage_one_density": 0.0}, r"method.stage_one_density is 0.0; expected a fraction in \(0, 1\]"),
        ({"stage_one_rounds": 0}, "method.stage_one_rounds is 0; expected 1 or more"),
        ({"stage_one_lr": 0.0}, "method.stage_one_lr is 0.0; expected a number above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        SLoRA(**options)  # type: ignore[arg-type]


def test_it_needs_both_factors() -> None:
    with pytest.raises(ConfigurationError, match="SLoRA needs LoRA's two factors"):
        SLoRA().check(tiny.layout_of(3))


@pytest.mark.parametrize(("stage_one_rounds", "notes"), [(3, 0), (4, 1), (5, 1)])
def test_a_run_that_never_reaches_lora_says_so(stage_one_rounds: int, notes: int) -> None:
    given = Arrangement(tiny.partition([4]), ClientOptions(), RunOptions(rounds=4))
    arranged = SLoRA(stage_one_rounds=stage_one_rounds).arrange(given)
    assert arranged.run == given.run
    assert len(arranged.notes) == notes
