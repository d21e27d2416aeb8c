"""`fedsim bench`: every contestant has its row, and nothing is timed before equal work is proven."""

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.server import initial_state
from fedsim.simulation import run_round
from fedsim.transport import Workers
from launch.__main__ import main
from launch.benchmarks import (
    features,
    local_work,
    method_rounds,
    overhead,
    payload,
    population,
    rounds,
    slots,
    table,
    works,
)
from launch.benchmarks.contestants import CONTESTANTS, Contestant
from launch.benchmarks.local_work import Arena
from launch.benchmarks.memory import Reading, growth
from launch.benchmarks.peers import environments
from launch.benchmarks.peers.environments import PEERS
from launch.benchmarks.works import WORKS, Round, Work

HERE = {who: contestant for who, contestant in CONTESTANTS.items() if contestant.peer is None}
SMALLEST = Work("smallest", works.digits, works.tiny_vit, batch_size=4, clients=2, steps=2)
DEIT = next(work for work in WORKS if work.name == "DeiT-Tiny 64 px, batch 16")


@pytest.fixture(autouse=True)
def _smallest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The smallest work, no processes of their own for peak memory, no peer and no compiler: they have their tests."""
    monkeypatch.setattr(works, "WORKS", (SMALLEST,))
    monkeypatch.setattr(environments, "CACHE", tmp_path / "peers")
    monkeypatch.setattr(rounds, "peak_memory", lambda work, who, threads, clients: 123_000_000)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One worker here in place of two processes, which take seconds to start; notes their threads when they end."""
    threads_of_ended: list[int] = []

    @contextmanager
    def here(build: Callable[[Workers], Round], threads: int) -> Iterator[Round]:
        try:
            yield build(Workers(0, 1, torch.device("cpu")))
        finally:
            threads_of_ended.append(threads)

    monkeypatch.setattr(local_work, "two_workers", here)
    return threads_of_ended


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the works that the command measures, all of them there; nothing runs."""
    numbers: list[int] = []

    def measure(works: dict[int, Work], repeats: int, threads: int, who: list[str]) -> list[dict[str, Any]]:
        numbers.extend(works)
        speeds = {"client_steps_per_second": 18.5, "ratio_to_bare": 1.84, "ratio_to_sequential": 1.85}
        named = {"work": "any", "who": "fedsim_two_workers", "threads": 2}
        return [{**named, **speeds, "ratio_to_pfl": None, "peak_memory_bytes": 1}]

    monkeypatch.setattr(works, "WORKS", WORKS)
    monkeypatch.setattr(rounds, "measure", measure)
    return numbers


def test_every_contestant_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str], ended: list[int]) -> None:
    path = tmp_path / "rows.json"
    assert main(["bench", "--repeats", "1", "--json", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = json.loads(path.read_text())
    assert [(row["work"], row["who"]) for row in rows] == [("smallest", who) for who in CONTESTANTS]
    asked_for = "bare deep_copy pfl flower fedsim_sequential fedsim_packed fedsim_packed_bf16"
    assert set(asked_for.split()) < set(CONTESTANTS)
    for row in rows:
        assert row["who"] in out
        assert row["threads"] == (2 if row["who"] == "flower" or "two" in row["who"] else 1)
        if row["who"] not in HERE:
            assert row["note"] == "not installed: fedsim bench --install_peers"
            assert [row[name] for name in rounds.MEASURED] == [None] * 5
            continue
        assert row["client_steps_per_second"] > 0
        assert row["ratio_to_bare"] > 0
        assert row["ratio_to_sequential"] > 0
        assert row["ratio_to_pfl"] is None
        assert row["peak_memory_bytes"] == 123_000_000
    assert out.count("not installed: fedsim bench --install_peers") == len(CONTESTANTS) - len(HERE)
    assert {contestant.peer for contestant in CONTESTANTS.values()} - {None} == set(PEERS)
    assert rows[0]["ratio_to_bare"] == 1
    assert {row["who"]: row for row in rows}["fedsim_sequential"]["ratio_to_sequential"] == 1
    assert "medians of 1 alternating rounds" in out
    assert ended == [1, 1, 1]


def test_all_do_equal_work() -> None:
    """In a later round, too, whatever each kept of the rounds before; two workers, real ones here, to the bit.

    One pair of them: a process takes its time to start, and packed clients on workers are in the battery of methods.
    """
    pairs = {"fedsim_packed_two_workers", "fedsim_packed_compiled_two_workers"}
    chosen = {who: contestant for who, contestant in HERE.items() if who not in pairs}
    with Arena(SMALLEST) as arena:
        contestants = {who: contestant.make(arena) for who, contestant in chosen.items()}
        for round in (1, 2, 1):
            expected = contestants["bare"](round)
            assert expected.norm() > 0
            updates = {who: train(round) for who, train in contestants.items()}
            for who, update in updates.items():
                assert (update - expected).norm() <= chosen[who].most_apart * expected.norm(), who
            assert torch.equal(updates["fedsim_two_workers"], updates["fedsim_sequential"])
        workers = sorted(multiprocessing.active_children(), key=lambda process: process.pid or 0)
        assert len(workers) == 2
        workers[1].kill()
        with pytest.raises(RuntimeError, match="one of the two workers stopped"):
            contestants["fedsim_two_workers"](1)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("ended")
def test_deit_tiny_does_equal_work_on_augmented_images() -> None:
    """All of DeiT-Tiny, on two steps of two images: the same crops and flips, and positions interpolated by all."""
    arena = Arena(replace(DEIT, batch_size=2, clients=2, steps=1))
    trained = [p.numel() for p in arena.model().parameters() if p.requires_grad]
    assert sum(trained) == 12 * 2 * (192 * 16 + 16 * 192) + (192 + 1) * 10
    assert next(arena.batches(1, 0))["pixel_values"].shape == (2, 3, 64, 64)
    expected = CONTESTANTS["bare"].make(arena)(1)
    assert expected.norm() > 0
    for who, contestant in HERE.items():
        assert (contestant.make(arena)(1) - expected).norm() <= contestant.most_apart * expected.norm(), who


def test_more_clients_than_there_are_examples_for_see_them_again() -> None:
    """A hundred of 80 examples, out of 1437."""
    with Arena(replace(SMALLEST, clients=100, steps=20)) as arena:
        assert len(arena.cohort(1)) == 100
        assert {len(batch["labels"]) for client in (0, 99) for batch in arena.batches(1, client)} == {4}


def test_who_does_other_work_is_not_timed(monkeypatch: pytest.MonkeyPatch, ended: list[int]) -> None:
    def idle(arena: Arena) -> Callable[[int], Tensor]:
        train = CONTESTANTS["bare"].make(arena)
        return lambda round: 1.0002 * train(round)

    monkeypatch.setitem(CONTESTANTS, "idle", Contestant(idle))
    with pytest.raises(RuntimeError, match="smallest: idle differs from the bare loop"):
        main(["bench", "--repeats", "1"])
    assert ended == [1, 1, 1]


def test_only_whom_one_asks_for_beside_the_bare_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    given = ["--who", "fedsim_packed,deep_copy", "--clients", "3", "--repeats", "1"]
    assert main(["bench", *given, "--json", str(path)]) == 0
    assert [row["who"] for row in json.loads(path.read_text())] == ["bare", "deep_copy", "fedsim_packed"]
    assert main(["bench", "--who", "nobody"]) == 2
    assert "unknown contestant 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ((), [0, 1, 2, 3, 4, 5]),
        (("--work", "deit"), [3, 4]),
        (("--work", "batch 16"), [0, 3, 5]),
        (("--work", "tiny ViT"), [0, 1, 2]),
    ],
)
def test_works_are_chosen_by_a_part_of_their_names(
    options: tuple[str, ...], numbers: list[int], measured: list[int]
) -> None:
    assert main(["bench", *options]) == 0
    assert measured == numbers


def test_an_unknown_work_is_answered_in_a_line(measured: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--work", "GPT"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--work is 'GPT'" in said
    assert all(work.name in said for work in WORKS)
    assert measured == []


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("cores", "threads", "noted"), [(1, 1, True), (2, 1, False), (2, 2, True)])
def test_two_workers_are_held_against_one_unless_they_share_cores(
    cores: int, threads: int, noted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(table, "_cores", lambda: cores)
    assert main(["bench", "--threads", str(threads)]) == 0
    torch.set_num_threads(before)
    out = capsys.readouterr().out
    assert "two workers do 1.850 times the client steps of one" in out
    assert ("no measure of how work spreads" in out) == noted


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


def test_rounds_of_few_and_of_many_clients_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(population, "FEW", 20)
    monkeypatch.setattr(population, "COHORT", 2)
    assert main(["bench", "--population", "3000", "--repeats", "2"]) == 0
    few, many, ratio, cpu_ratio = capsys.readouterr().out.splitlines()
    assert few.split()[:6] == ["2", "of", "20", "clients,", "200", "rows:"]
    assert many.split()[:6] == ["2", "of", "3,000", "clients,", "30,000", "rows:"]
    milliseconds = [float(line.split()[6]) for line in (few, many)]
    assert float(ratio.split()[1]) == pytest.approx(milliseconds[1] / milliseconds[0], rel=0.02)
    assert float(cpu_ratio.split()[4]) > 0
    assert main(["bench", "--population", "1"]) == 2
    assert "--population is 1, expected at least 2" in capsys.readouterr().err


def test_every_row_of_a_population_is_there_and_every_client_holds_as_many() -> None:
    """30 clients of 60: 1437 digits over and over, as bytes, become what the backbone reads."""
    data, own = population.many_digits(3000), works.digits()
    assert data.train["pixel_values"].dtype == torch.uint8
    assert data.train["pixel_values"].shape == (3000, 1, 8, 8)
    batch = data.transform({name: column[1437:1500] for name, column in data.train.items()}, None)
    assert torch.allclose(batch["pixel_values"], own.train["pixel_values"][:63], atol=1e-5)
    assert torch.equal(batch["labels"], own.train["labels"][:63])
    work = replace(population.work_of(60), clients=30)
    with Arena(work) as arena:
        assert arena._partition.sizes.tolist() == [population.EXAMPLES] * 60
        assert [len(batch["labels"]) for batch in arena.batches(1, 59)] == [population.EXAMPLES]


def test_memory_over_rounds_prints_a_line_per_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--memory_rounds", "2", "--threads", "1"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["0", "1", "2"]
    assert all(float(line.split()[2]) > 50 for line in lines)
    assert all(int(line.split()[5]) >= 3 for line in lines)
    assert re.fullmatch(r"growth after warm-up: [+-]\d+\.\d\d% of memory, [+-]\d+ open files", last)
    assert torch.get_num_threads() == 1


def test_growth_is_of_the_last_tenth_over_the_first_after_warm_up() -> None:
    """Neither what the first rounds take nor one high reading counts."""
    held = [100] * 10 + [200, 200, 200, 200, 500] + [200] * 75 + [210] * 9 + [900]
    readings = [Reading(at, size, 7 if at < 99 else 9) for at, size in enumerate(held)]
    percent, files = growth(readings)
    assert percent == pytest.approx(5)
    assert files == 2
    assert growth(readings[:1]) == (0, 0)


def test_a_feature_is_measured_off_and_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose rounds are held against each other where they are to be the same."""
    padded = replace(features.PADDED, model=_small_text_model, batch_size=4, clients=2, steps=2)
    monkeypatch.setattr(features, "EVALUATED", 20)
    chosen = []
    for feature in features.FEATURES:
        if feature.name == "packed steps compiled":  # takes its time, and has a test of its own
            continue
        off, on = (
            replace(SMALLEST, model=work.model) if work.data is works.digits else replace(padded, data=work.data)
            for work in (feature.off, feature.on)
        )
        chosen.append(replace(feature, off=off, on=on))
    monkeypatch.setattr(features, "FEATURES", chosen)
    assert main(["bench", "--features", "--repeats", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in said] == [feature.name for feature in chosen]
    assert main(["bench", "--features", "--work", "GPT"]) == 2
    assert "--work is 'GPT', on which no feature is measured" in capsys.readouterr().err
    for line, feature in zip(said, chosen, strict=True):
        assert re.search(r"off [\d.]+ ms, on [\d.]+ ms, gain [\d.]+, ", line)
        assert line.endswith("other batches") == (not feature.same)
        if feature.same:
            assert float(line.rpartition(" ")[2]) <= 1e-5


def _small_text_model(data: Any) -> Any:
    return works.minilm(data, layers=1)


def test_numbers_of_slots_have_a_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(slots, "COUNTS", (1, 2))
    monkeypatch.setattr(slots, "BY_SLOTS", dict.fromkeys(("slots_1", "slots_2"), CONTESTANTS["bare"]))
    assert main(["bench", "--slots", "--repeats", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["smallest,  1 slots", "smallest,  2 slots"]
    assert all("client steps/s" in line and "peak memory 123 MB" in line for line in said)
    assert sum(", what auto takes: " in line for line in said) == 1


def test_what_a_round_costs_beside_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: list[int]
) -> None:
    """On one worker here, whose round is nearly all training."""
    monkeypatch.setattr(overhead, "two_workers", local_work.two_workers)
    assert main(["bench", "--overhead", "--repeats", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "smallest, two workers, 1 slot(s) each",
        "smallest, two workers, 5 slot(s) each",
    ]
    shares = [float(re.search(r"all else ([\d.]+)%", line)[1]) for line in said]  # type: ignore[index]
    assert all(0 < share < 90 for share in shares)
    assert ended == [1, 1]


def test_rounds_of_the_sparse_methods_stand_beside_loras(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--methods", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for lines_of_slots, count in ((lines[:6], 1), (lines[6:], 2)):
        told = [line.removeprefix(f"smallest, {count} slot(s), ").partition(": ")[0] for line in lines_of_slots]
        assert told == list(method_rounds.METHODS)
        assert lines_of_slots[0].endswith("1.000 of LoRA's, 1.000 of its CPU time")
        assert all(float(number) > 0 for line in lines_of_slots for number in re.findall(r"([\d.]+) of", line))


def test_what_is_timed_goes_on_and_is_sparse() -> None:
    """SparseAdapter's first round is dense, and from the second on what it pruned stands still."""
    with Arena(SMALLEST) as arena:
        parts = arena.parts()
        experiment = arena.experiment(method_rounds.METHODS["SparseAdapter 1/4"](), parts, parts.sequential())
        state = initial_state(experiment)
        seen = []
        for number in (1, 2, 3):
            run_round(experiment, state, number, Workers(0, 1, torch.device("cpu")), None)
            seen.append(state.vector.detach().clone())
    still = (seen[1] == seen[2]).float().mean()
    assert 0.7 < float(still) < 0.8
    assert not torch.equal(seen[1], seen[2])
