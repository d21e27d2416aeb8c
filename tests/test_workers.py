"""The same curve everywhere: any number of workers, killed or not, gives the same bits; and the collectives carry the
bytes of the ledger."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fedsim.codec import decode_message, values_in
from launch.__main__ import main
from launch.registry import choices
from tests.battery import BATTERY, COMMON, VARIANTS, entries, run_all
from tests.workers import kill, launch, run, wait

MAGIC = b"FSV1"
ALONE = "Centralised"
"""The one entry with one client a round, and so with one worker that trains."""

EVERYTHING = (*BATTERY, *VARIANTS)


class Together(NamedTuple):
    """Entries that ran on several workers."""

    workers: int
    names: Sequence[str]
    folder: Path


def rows(path: Path, but: str) -> list[dict[str, str]]:
    """A CSV's rows without one column."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != but} for row in csv.DictReader(file)]


def bits(run: Path) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, bytes]]:
    """All that must be the same: metrics but for seconds, the ledger but for workers, adapter and changed backbone."""
    weights = {path.parent.name: path.read_bytes() for path in run.glob("*/*.safetensors")}
    return rows(run / "metrics.csv", "seconds"), rows(run / "ledger.csv", "worker"), weights


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every entry of the battery, on one worker, in this process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, options in entries(folder).items():
        assert main(["run", *COMMON, *options, "--run_dir", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module", params=[(2, EVERYTHING), (3, (*VARIANTS, "FedSALoRA")), (4, ("FLASC", "FedExLoRA"))])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Entries on several workers, started once for all of them."""
    workers, names = request.param
    folder = tmp_path_factory.mktemp(f"workers{workers}")
    entries(folder)  # saved here, and not by one of the workers while another reads
    launcher = launch(workers, run_all, folder, names, said=folder / "said")
    assert wait(launcher, 240) == 0, (folder / "said").read_text()
    return Together(workers, names, folder)


def test_the_battery_covers_every_method() -> None:
    assert set(BATTERY) == {choice.name for choice in choices("methods")}


def test_any_number_of_workers_gives_the_same_bits(alone: Path, together: Together) -> None:
    workers, names, folder = together
    for name in names:
        assert bits(folder / name) == bits(alone / name), f"{name} on {workers} workers"
        ledger = rows(folder / name / "ledger.csv", "round")
        assert {row["worker"] for row in ledger} <= {str(w) for w in range(workers)}
    assert all(len({row["worker"] for row in rows(folder / n / "ledger.csv", "")}) > 1 for n in names if n != ALONE)


def test_collectives_carry_the_bytes_of_the_ledger(together: Together) -> None:
    """Every client's encoded upload is found, whole and once, in what its worker put into the all-gather, with nothing
    but padding behind it; every client's download in what the server worker broadcast."""
    workers, names, folder = together
    for name in names:
        carried = [torch.load(folder / f"{name}-carried-{w}.pt", weights_only=True) for w in range(workers)]
        ledger = rows(folder / name / "ledger.csv", "")
        gathers = [[bytes(b.tolist()) for kind, b in own if kind != "broadcast"] for own in carried]
        broadcasts = [bytes(b.tolist()) for kind, b in carried[0] if kind == "broadcast"]
        downloads = iter([b for b in broadcasts if b.startswith(MAGIC)])
        uploads = [iter(own) for own in gathers]
        for number in range(1, 7):
            of_round = [row for row in ledger if row["round"] == str(number)]
            if any(int(row["upload_bytes"]) for row in of_round):
                for w in range(workers):
                    next(uploads[w])  # what the clients keep and log
                    _take_uploads(next(uploads[w]), [row for row in of_round if row["worker"] == str(w)])
            sizes = {int(row["download_bytes"]) for row in of_round} - {0}
            if sizes:
                assert sizes <= runs_of_payloads(next(downloads)), f"{name}, round {number}"


def runs_of_payloads(buffer: bytes) -> set[int]:
    """The lengths of all messages that neighbouring payloads of a buffer could make up."""
    ends = [0]
    while ends[-1] < len(buffer):
        size = next(n for n in range(ends[-1] + 1, len(buffer) + 1) if n == len(buffer) or buffer[n : n + 4] == MAGIC)
        ends.append(size)
    return {stop - start for start in ends for stop in ends if stop > start}


def _take_uploads(buffer: bytes, entries: Sequence[dict[str, str]]) -> None:
    """Decodes a worker's messages off its buffer in cohort order; the rest must be padding."""
    start = 0
    for entry in entries:
        size = int(entry["upload_bytes"])
        if size:
            message = buffer[start : start + size]
            _, examples = decode_message(message)
            assert (values_in(message), examples) == (int(entry["upload_values"]), int(entry["examples"]))
        start += size
    assert not any(buffer[start:])


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
