"""The same curve everywhere: any number of workers, killed or not, gives the same bits; and the collectives carry the
bytes of the ledger."""

import csv
import time
from pathlib import Path

import pytest
import torch

from fedsim.codec import decode
from launch.__main__ import main
from launch.registry import choices
from tests.battery import BATTERY, COMMON, VARIANTS, entries, run_all
from tests.workers import kill, launch, run, wait

ENTRIES = {**BATTERY, **VARIANTS}


def rows(path: Path, but: str) -> list[dict[str, str]]:
    """A CSV's rows without one column."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != but} for row in csv.DictReader(file)]


def bits(run: Path) -> tuple[list[dict[str, str]], list[dict[str, str]], bytes]:
    """All that must be the same: metrics but for seconds, the ledger but for workers, the adapter."""
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    return rows(run / "metrics.csv", "seconds"), rows(run / "ledger.csv", "worker"), adapter


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every entry of the battery, on one worker, in this process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, options in entries(folder).items():
        assert main(["run", *COMMON, *options, "--run_dir", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module", params=[2, 3, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The same on several workers, started once for all entries."""
    folder = tmp_path_factory.mktemp(f"workers{request.param}")
    entries(folder)  # saved here, and not by one of the workers while another reads
    launcher = launch(request.param, run_all, folder, said=folder / "said")
    assert wait(launcher, 240) == 0, (folder / "said").read_text()
    return request.param, folder


def test_the_battery_covers_every_method() -> None:
    assert set(BATTERY) == {choice.name for choice in choices("methods")}


def test_any_number_of_workers_gives_the_same_bits(alone: Path, together: tuple[int, Path]) -> None:
    workers, folder = together
    for name in ENTRIES:
        assert bits(folder / name) == bits(alone / name), f"{name} on {workers} workers"
        assert {row["worker"] for row in rows(folder / name / "ledger.csv", "round")} == {
            str(w) for w in range(workers)
        }


def test_collectives_carry_the_bytes_of_the_ledger(together: tuple[int, Path]) -> None:
    """Every client's encoded upload is found, whole and once, in what its worker put into the all-gather, with nothing
    but padding and the clients' logs beside it; every round's download in what the server worker broadcast."""
    workers, folder = together
    for name in ENTRIES:
        carried = [torch.load(folder / f"{name}-carried-{w}.pt", weights_only=True) for w in range(workers)]
        ledger = rows(folder / name / "ledger.csv", "")
        gathers = [[bytes(b.tolist()) for kind, b in own if kind != "broadcast"] for own in carried]
        uploads = sum(
            _take_uploads(
                gathers[w][2 * (number - 1) + 1],
                [r for r in ledger if r["round"] == str(number) and r["worker"] == str(w)],
            )
            for number in range(1, 7)
            for w in range(workers)
        )
        assert uploads == sum(int(row["upload_bytes"]) for row in ledger) > 0
        assert [len(own) for own in gathers] == [2 * 6] * workers  # logs and uploads, once a round, in one piece
        broadcasts = [bytes(b.tolist()) for kind, b in carried[0] if kind == "broadcast"]
        for number in range(1, 7):
            (size,) = {int(row["download_bytes"]) for row in ledger if row["round"] == str(number)} - {0}
            assert any(len(b) == size and decode(b) for b in broadcasts)


def _take_uploads(buffer: bytes, entries: list[dict[str, str]]) -> int:
    """Decodes a worker's payloads off its buffer in cohort order; the rest must be padding. Returns their length."""
    start = 0
    for entry in entries:
        size = int(entry["upload_bytes"])
        if size:
            upload, examples = decode(buffer[start : start + size])
            assert (upload.count, examples) == (int(entry["upload_values"]), int(entry["examples"]))
        start += size
    assert not any(buffer[start:])
    return start


def test_a_killed_run_resumes_on_other_workers_with_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of a run on two workers, launcher and all; three go on from its checkpoint."""
    options = ["--cohort_size", "6", "--evaluate_every_rounds", "3", "--checkpoint_every_rounds", "2"]
    long = [*options, "--rounds", "30"]
    assert main(["run", *long, "--run_dir", str(tmp_path / "whole")]) == 0
    killed, said = tmp_path / "killed", tmp_path / "said"
    launcher = launch(2, run, "run", *long, "--run_dir", str(killed), said=said)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint" / "round-000006").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    kill(launcher)
    assert (killed / "checkpoint" / "round-000006").exists(), said.read_text()
    assert not (killed / "summary.json").exists(), "the run ended before it was killed: make it longer"
    launcher = launch(3, run, "run", *long, "--run_dir", str(killed), "--resume", "auto", said=said)
    assert wait(launcher, 120) == 0, said.read_text()
    assert bits(killed) == bits(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "said", "status"),
    [
        (("--run_dir", "{foreign}"), "holds something that is no run", 2),
        (("--run_dir", "{new}", "--client.lr", "1e30"), "values are not finite", 1),
    ],
    ids=["refused by the server worker alone", "a client diverges on its worker"],
)
def test_one_worker_says_in_one_line_what_went_wrong(
    options: tuple[str, ...], said: str, status: int, tmp_path: Path
) -> None:
    """The others neither hang nor add tracebacks of broken connections."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    given = [option.format(foreign=tmp_path / "foreign", new=tmp_path / "new") for option in options]
    assert wait(launch(2, run, "run", "--rounds", "3", *given, said=tmp_path / "said"), 120) == 1
    shown = (tmp_path / "said").read_text()
    ours = [line for line in shown.splitlines() if line.startswith("fedsim: ")]
    assert 1 <= len(ours) <= 2  # two where both workers' clients diverged
    assert all(said in line for line in ours)
    assert f"exitcode: {status}" in shown or f"exitcode  : {status}" in shown
    assert "Connection closed" not in shown
