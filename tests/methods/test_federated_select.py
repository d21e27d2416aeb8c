from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import ViTForImageClassification

from fedsim.adapters import export_adapter, export_backbone
from fedsim.backbone import quiet
from fedsim.codec import HEADER_BYTES
from fedsim.errors import ConfigurationError
from fedsim.options import ServerOptions
from methods.federated_select import FederatedSelect
from tests import pruned, tiny
from tests.short_run import short_run

P = [4.0, -3.0, 0.5, 2.0, -1.0, 6.0, 0.1, -5.0]


def test_two_rounds_by_hand() -> None:
    """A quarter of eight: -5 and 6 go down, and only they train and go up; the server keeps the other six.

    Two clients take 6 to 2 and to 1, and -5 to -4 and to -5. The mean of what changed is 4.5 and -0.5, and the server
    (rate 1) subtracts it from its whole P, so that 4 and -4.5 are the next.
    """
    method = FederatedSelect(density=0.25, parameters="backbone")
    state = tiny.server_state(P, optimizer="sgd", lr=1.0)
    shared = tiny.shared_of(state, 1, **method.prepare(state, 1))
    plan = method.plan(state, 1, 0)
    download = method.download(state, shared, plan)
    assert (download.values.indices.tolist(), download.values.values.tolist()) == ([5, 7], [6, -5])
    assert method.download_support(shared, plan) is None  # its indices travel, as clients do not know them
    assert method.upload_support(shared, plan).tolist() == [5, 7]

    start = download.values.to_dense()
    job = replace(tiny.build().job(0, 4), start=start, reference=start, shared=shared, plan=plan)
    assert method.moving(shared, plan).tolist() == [5, 7]
    aggregate = method.aggregate(state, shared)
    for six, five in ((2.0, -4.0), (1.0, -5.0)):
        trained = start.clone()
        trained[5], trained[7] = six, five
        aggregate.add(tiny.arrived(method.upload(job, trained).update))
    update = aggregate.finish()
    assert update.tolist() == [0, 0, 0, 0, 0, 4.5, 0, -0.5]
    method.step(state, update)
    assert state.vector.tolist() == [4, -3, 0.5, 2, -1, 1.5, 0.1, -4.5]
    assert method.prepare(state, 2)["kept"].tolist() == [0, 7]
    assert method.views(state)["masked"].tolist() == [4, 0, 0, 0, 0, 0, 0, -4.5]
    assert method.views(state)["full"].tolist() == state.vector.tolist()


def test_the_optimiser_also_moves_what_no_client_trained() -> None:
    """Line 29 steps all of P: Adam remembers the dense round where the mask lets nobody train."""
    method = FederatedSelect(density=0.25, lora_rank=2)
    state = tiny.server_state(pruned.P, pruned.lora_layout(), lr=0.05)
    for round in (1, 2):
        mask = method.prepare(state, round)
        before = state.vector.detach().clone()
        update = torch.ones(12, dtype=torch.float64)
        if mask:
            update = torch.zeros_like(update).index_fill(0, mask["kept"], 1.0)
        method.step(state, update)
    assert mask["kept"].tolist() == [0, 7, 9]  # B is 0.25, 0.05, -0.25, 0.35 after the dense round
    assert (state.vector != before).all()


@pytest.mark.parametrize("dense_rounds", [0, 1, 2])
def test_dense_rounds_come_first_and_are_counted_by_steps(dense_rounds: int) -> None:
    """A round without a step (an empty cohort) does not count: B would still be zero."""
    method = FederatedSelect(density=0.5, dense_rounds=dense_rounds)
    state = tiny.server_state(pruned.P, pruned.lora_layout())
    for round in range(1, 5):
        shared = tiny.shared_of(state, round, **method.prepare(state, round))
        is_dense = round <= dense_rounds + 1 and (dense_rounds > 0)
        download = method.download(state, shared, method.plan(state, round, 0))
        assert download.values.count == (12 if is_dense else 6)
        assert (method.upload_support(shared, method.plan(state, round, 0)) is None) == is_dense
        assert torch.equal(method.views(state)["masked"], download.values.to_dense())
        if round != 1:
            method.step(state, torch.ones(12, dtype=torch.float64))
            after = method.views(state)["masked"].count_nonzero()
            assert after == (12 if round <= dense_rounds else 6)


def test_the_backbone_needs_no_dense_round() -> None:
    state = tiny.server_state(P)
    assert len(FederatedSelect(density=0.5, parameters="backbone", dense_rounds=3).prepare(state, 1)["kept"]) == 4


def test_the_backbone_trains_and_uploads_within_the_mask() -> None:
    """A quarter of its weights and of the head's, from the first round on; a server of SGD moves these and no other."""
    method = FederatedSelect(density=0.25, parameters="backbone")
    after = [tiny.build(method).vector.clone()]
    for run in pruned.rounds(method, 2, ServerOptions("sgd", lr=0.5)):
        watched, state = run
        after.append(state.vector.detach().clone())
    sizes, masks = state.layout.segments(), watched.masks
    kept = sum(int(0.25 * sizes[segment]) for segment in ("backbone", "head"))
    assert set(sizes) == {"backbone", "head"}
    for round in (1, 2):
        assert int(masks[round].sum()) == kept
        moved = after[round] != after[round - 1]
        assert not moved[~masks[round]].any()
        assert moved[masks[round]].double().mean() > 0.5
    pruned.assert_clients_stay_within(watched)
    for entry in watched.entries:
        values = HEADER_BYTES + 4 * kept
        indices = pruned.index_bytes(masks[entry.round]) - HEADER_BYTES
        assert (entry.upload_values, entry.upload_bytes) == (kept, values)
        assert (entry.download_values, entry.download_bytes) == (kept, values + indices)
    assert watched.notes == []  # there is no adapter that could be dead
    assert int(method.views(state)["masked"].count_nonzero()) <= kept < int(method.views(state)["full"].count_nonzero())


def test_a_run_on_the_backbone_and_its_export(tmp_path: Path) -> None:
    """Both views are evaluated; transformers and PEFT load the masked backbone, whose adapter is zero."""
    ended = short_run(FederatedSelect(density=0.25, parameters="backbone"), tmp_path, rounds=2)
    assert {"accuracy", "full/accuracy"} <= set(ended.metrics[-1])
    assert not any(weight.any() for name, weight in ended.weights.items() if ".lora_B." in name)
    with quiet():
        export_backbone(ended.made.model, tmp_path / "backbone")
        export_adapter(ended.made.model, tmp_path / "adapter", str(tmp_path / "backbone"))
        base = ViTForImageClassification.from_pretrained(tmp_path / "backbone")
        sparse = torch.cat([weight.detach().reshape(-1) for weight in base.parameters()])
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert sparse.count_nonzero() <= int(0.25 * len(sparse))
    pixels = ended.made.test.batch(torch.arange(6))["pixel_values"]
    with torch.no_grad():
        expected = ended.made.model.eval()(pixel_values=pixels).logits
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-4, 1), st.integers(1, 200))
def test_exactly_k_entries_travel(density: float, length: int) -> None:
    method = FederatedSelect(density=density, parameters="backbone")
    vector = torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    state = tiny.server_state(vector.tolist())
    shared = tiny.shared_of(state, 1, **method.prepare(state, 1))
    download = method.download(state, shared, method.plan(state, 1, 0))
    assert download.values.count == len(shared.tensors["kept"]) == max(1, int(density * length))


@pytest.mark.parametrize("scope", ["segment", "global"])
def test_clients_train_and_upload_within_the_mask(scope: str) -> None:
    """A quarter of 192, 192 and 51 values each way: indices go down, none comes up."""
    kept = 108
    *_, (watched, state) = pruned.rounds(FederatedSelect(lora_rank=2, mask_scope=scope), 3)
    masks = watched.masks
    assert [int(masks[round].sum()) for round in (1, 2, 3)] == [435, kept, kept]
    assert not torch.equal(masks[2], masks[3])
    pruned.assert_clients_stay_within(watched, alive=scope == "segment")
    for entry in watched.entries:
        if entry.round > 1:
            values = HEADER_BYTES + 4 * kept
            assert (entry.upload_values, entry.upload_bytes) == (kept, values)
            indices = pruned.index_bytes(masks[entry.round]) - HEADER_BYTES
            assert (entry.download_values, entry.download_bytes) == (kept, values + indices)
    assert len(watched.notes) == (scope == "global")  # a dead adapter is told once
    assert bool(masks[3][state.layout.where(["B"])].any()) == (scope == "segment")
    assert state.vector.count_nonzero() > 400  # the server keeps all of P


def test_labels_say_what_differs() -> None:
    assert FederatedSelect().label == "Federated Select 1/4"
    method = FederatedSelect(density=0.75, parameters="backbone", mask_scope="global")
    assert method.label == "Federated Select 0.75, backbone, global mask"


def test_options_outside_their_range_are_refused() -> None:
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match=r"method\.density"):
            FederatedSelect(density=density)
    with pytest.raises(ConfigurationError, match=r"method\.dense_rounds"):
        FederatedSelect(dense_rounds=-1)
