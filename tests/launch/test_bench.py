"""`fedsim bench`: every contestant has its row, and nothing is timed before equal work is proven."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launch import bench
from launch.__main__ import main
from launch.benchmarks import local_work, payload
from launch.benchmarks.local_work import WHO, Arena, Work

SMALLEST = Work("smallest", batch_size=4, clients=2, steps=2)


@pytest.fixture(autouse=True)
def _smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest work, and no processes of their own for peak memory."""
    monkeypatch.setattr(local_work, "WORKS", (SMALLEST,))
    monkeypatch.setattr(bench, "_peak_memory", lambda work, who, threads: 123_000_000)


def test_every_contestant_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    assert main(["bench", "--repeats", "1", "--json", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = json.loads(path.read_text())
    assert [(row["work"], row["who"]) for row in rows] == [("smallest", who) for who in WHO]
    assert {"bare", "fedsim_sequential", "fedsim_packed"} < set(WHO)
    for row in rows:
        assert row["client_steps_per_second"] > 0
        assert row["ratio_to_bare"] > 0
        assert row["peak_memory_bytes"] == 123_000_000
        assert row["who"] in out
    assert rows[0]["ratio_to_bare"] == 1
    assert "medians of 1 alternating rounds" in out


def test_all_do_equal_work() -> None:
    """In a later round, too, whatever each kept of the rounds before."""
    arena = Arena(SMALLEST)
    contestants = {who: arena.contestant(who) for who in WHO}
    for round in (1, 2, 1):
        expected = contestants["bare"](round)
        assert expected.norm() > 0
        for who, train in contestants.items():
            assert (train(round) - expected).norm() <= bench.EQUAL_WORK * expected.norm(), who


def test_who_does_other_work_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(arena: Arena) -> Callable[[int], Tensor]:
        train = arena.contestant("bare")
        return lambda round: (1 + 2 * bench.EQUAL_WORK) * train(round)

    monkeypatch.setitem(WHO, "idle", idle)
    with pytest.raises(RuntimeError, match="smallest: idle differs from the bare loop"):
        main(["bench", "--repeats", "1"])


def test_one_contestant_alone_prints_its_peak_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """What the table's last column is read from, in a process each."""
    assert main(["bench", "--only", "0/fedsim_packed"]) == 0
    assert int(capsys.readouterr().out) > 50 * 2**20


def test_the_payload_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row per density, and fewer bytes for fewer values."""
    times = payload.payload_times
    monkeypatch.setattr(payload, "payload_times", lambda length, repeats: times(length // 100, repeats))
    assert main(["bench", "--payload", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(payload.DENSITIES)
    rows = [dict(zip(line.split()[::2], map(float, line.split()[1::2]), strict=True)) for line in lines]
    assert [row["density"] for row in rows] == [pytest.approx(density, rel=1e-4) for density in payload.DENSITIES]
    bytes_ = [row["payload_bytes"] for row in rows]
    assert bytes_ == sorted(bytes_, reverse=True)
    assert bytes_[0] >= 4 * 6000 / 4
    assert all(row[name] >= 0 for row in rows for name in ("top_k_and_encode_ms", "decode_ms", "torch_topk_ms"))


def test_memory_over_rounds_prints_a_line_per_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--memory_rounds", "2", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["0", "1", "2"]
    assert all(float(line.split()[2]) > 50 for line in lines)
    assert torch.get_num_threads() == 1
