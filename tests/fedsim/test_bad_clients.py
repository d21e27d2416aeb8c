"""A bad client is not a bad run: it is left out, its update is shortened, or the run says who it was."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsim.bad_clients import Faults, Judged, judge
from fedsim.client import Trained
from fedsim.errors import TrainingError
from fedsim.method import ClientJob, Upload
from fedsim.options import CommunicationOptions, RunOptions
from launch.__main__ import main
from methods.fed_sa_lora import FedSALoRA
from methods.lora import LoRA
from tests import tiny
from tests.rounds import rounds

BAD = 2


@dataclass
class Broken(FedSALoRA):
    """One client starts somewhere else than it measures its update from."""

    shift: float = float("nan")

    def begin(self, job: ClientJob) -> ClientJob:
        return replace(job, start=job.start + self.shift) if job.client == BAD else job


def made(vector: Tensor, loss: float = 1.0) -> Trained:
    job = replace(tiny.build().job(7, 4), start=torch.zeros(len(vector)), reference=torch.zeros(len(vector)))
    return Trained(job, vector, {"train/loss": loss})


def test_good_work_is_as_it_was() -> None:
    trained = made(torch.tensor([3.0, 4.0]))
    for policy, norm in (("skip", None), ("fail", 5.0), ("clip", 5.0)):
        assert judge(trained, policy, norm) == Judged(trained)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trained", "fault"),
    [
        (made(torch.tensor([1.0, float("nan"), float("inf")])), "2 of 3 values are not finite"),
        (made(torch.tensor([1.0]), float("nan")), "its loss is not finite"),
        (made(torch.tensor([30.0, 40.0])), "its update has length 50, above max_update_norm 5"),
    ],
)
def test_bad_work_is_left_out_or_stops_the_run(trained: Trained, fault: str) -> None:
    assert judge(trained, "skip", 5.0) == Judged(None, fault)
    with pytest.raises(TrainingError, match=r"^the update of client 7 in round 1: .*on_bad_client skip"):
        judge(trained, "fail", 5.0)


def test_only_what_is_too_long_can_be_shortened() -> None:
    shortened = judge(made(torch.tensor([30.0, 40.0])), "clip", 5.0)
    assert shortened.trained is not None
    torch.testing.assert_close(shortened.trained.vector, torch.tensor([3.0, 4.0]))
    assert shortened.fault
    assert judge(made(torch.tensor([float("nan")])), "clip", 5.0).trained is None
    assert judge(made(torch.tensor([1.0]), float("inf")), "clip", 5.0).trained is None


def test_a_round_says_what_was_wrong_and_stops_without_anybody() -> None:
    def noted(left_out: bool, bad: int, clients: int) -> tuple[list[str], dict[str, float]]:
        state, faults = tiny.server_state([0.0]), Faults(3)
        faults.hear(1, {"logged": {"train/loss": 0.1}, "fault": ""})
        for client, fault in ((4, "its loss is not finite"), (9, "3 of 5 values are not finite"))[:bad]:
            faults.hear(client, {"fault": fault, "left_out": True} if left_out else {"fault": fault})
        faults.report(state, clients)
        return state.notes, state.measures

    assert noted(True, 0, 10) == ([], {})
    said = "client 4 as its loss is not finite"
    assert noted(True, 2, 10) == ([f"round 3: 2 of 10 clients left out, {said}"], {"left_out_clients": 2})
    assert noted(False, 2, 10) == ([f"round 3: 2 of 10 updates shortened, {said}"], {"left_out_clients": 0})
    with pytest.raises(TrainingError, match="round 3: all 2 clients were left out, client 4 because its loss"):
        noted(True, 2, 2)


@pytest.mark.parametrize("slots", [0, 3], ids=["one after another", "packed"])
@pytest.mark.parametrize(
    ("shift", "policy", "bound"), [(float("nan"), "skip", None), (9.0, "skip", 5.0), (9.0, "clip", 5.0)]
)
def test_the_engine_takes_the_mean_of_what_is_left(slots: int, shift: float, policy: str, bound: float | None) -> None:
    """Who is left out pays for its download, sends nothing, counts nothing, and keeps what it had."""
    method = Broken(lora_rank=2, shift=shift, weighting="uniform")
    run = RunOptions(rounds=1, cohort_size=3, on_bad_client=policy, max_update_norm=bound)  # type: ignore[arg-type]
    (played,) = rounds(method, 1, sizes=(5, 4, 9), slots=slots, run=run)
    left_out = int(policy == "skip")
    sent = {done.job.client: done.job.reference - done.vector for done in played.trained}
    if left_out:
        del sent[BAD]
    else:
        sent[BAD] *= 5.0 / sent[BAD].norm()
    places = played.state.layout.where(["A"])
    expected = played.state.initial - torch.stack(list(sent.values())).mean(0)
    torch.testing.assert_close(played.state.vector.detach()[places], expected[places], rtol=0, atol=1e-15)
    assert [bool(entry.upload_bytes) for entry in played.entries] == [True, True, not left_out]
    assert all(entry.download_bytes and entry.examples for entry in played.entries)
    assert played.measures["left_out_clients"] == left_out
    assert len(played.notes) == 1
    assert {client: bool(held.tensors) for client, held in played.state.clients.items()} == {
        0: True,
        1: True,
        BAD: not left_out,
    }
    assert all(held.round == 1 for held in played.state.clients.values())


def test_who_sends_what_the_dtype_cannot_hold_is_left_out_alone() -> None:
    class Loud(LoRA):
        def upload(self, job: ClientJob, trained: Tensor) -> Upload:
            return super().upload(job, trained * 1e6 if job.client == BAD else trained)

    (played,) = rounds(
        Loud(lora_rank=2),
        1,
        sizes=(5, 4, 9),
        dtype=torch.float32,
        communication=CommunicationOptions(value_dtype="float16"),
    )
    assert [bool(entry.upload_bytes) for entry in played.entries] == [True, True, False]
    assert played.measures["left_out_clients"] == 1
    assert "values are not finite as float16" in played.notes[0]


def test_a_run_stops_where_it_is_to_or_where_nobody_is_left() -> None:
    for policy, says in (
        ("fail", "the update of client 2 in round 1: "),
        ("skip", "round 1: all 1 clients were left out"),
    ):
        sizes = (5, 4, 9) if policy == "fail" else (0, 0, 9)
        run = RunOptions(rounds=1, cohort_size=3, on_bad_client=policy)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match=says):
            next(rounds(Broken(lora_rank=2), 1, sizes=sizes, run=run))


def test_a_run_counts_whom_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says it in the file of metrics, in the summary and on the terminal."""
    options = ["run", "--rounds", "4", "--evaluate_every_rounds", "2", "--max_update_norm", "0.2"]
    assert main([*options, "--run_dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["left_out_clients"] < 40
    assert "server/left_out_clients" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "clients left out, client " in capsys.readouterr().out
