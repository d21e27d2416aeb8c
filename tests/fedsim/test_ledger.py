import csv
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.codec import encode
from fedsim.errors import ConfigurationError
from fedsim.ledger import Entry, Ledger, Totals, Travelled
from fedsim.sparse import IndexSet, SparseVector

ENTRIES = [Entry(round, client, 0, 5, 100 + client, 200, 10, 20) for round in (1, 2) for client in (3, 8)]


def rows(path: Path) -> list[dict[str, int]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_an_entry_measures_the_encoded_payloads() -> None:
    """Bytes are what was encoded, header and places included; values are what the sender kept."""
    vector = torch.arange(1.0, 1001.0)
    upload = encode(SparseVector.at(vector, torch.arange(0, 1000, 10)), examples=7)
    download = encode(SparseVector.dense(vector))
    entry = Entry.of(3, 12, 1, 7, Travelled.of(upload), Travelled.of(download))
    assert asdict(entry) == {
        **{"round": 3, "client": 12, "worker": 1, "examples": 7},
        **{"upload_bytes": len(upload), "download_bytes": len(download)},
        **{"upload_values": 100, "download_values": 1000},
    }
    assert 400 < len(upload) < 600
    assert 4000 < len(download) < 4040


def test_an_entry_charges_for_all_payloads_of_a_message_and_counts_values_alone() -> None:
    """A mask and a seed have bytes and no values; a vector beside P has both."""
    parts = (
        SparseVector.dense(torch.ones(10)),
        IndexSet(1000, torch.arange(0, 1000, 7)),
        b"a seed",
        SparseVector.dense(torch.ones(3)),
    )
    payloads = [encode(part) for part in parts]
    entry = Entry.of(1, 2, 0, 7, *(Travelled.of(b"".join(p)) for p in (payloads[:3], payloads)))
    assert (entry.upload_bytes, entry.upload_values) == (sum(map(len, payloads[:3])), 10)
    assert (entry.download_bytes, entry.download_values) == (sum(map(len, payloads)), 13)


def test_a_client_without_examples_pays_nothing() -> None:
    entry = Entry.of(1, 2, 0, 0, Travelled.of(b""), Travelled())
    assert (entry.upload_bytes, entry.download_bytes, entry.upload_values, entry.download_values) == (0, 0, 0, 0)


def test_rows_and_totals(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.csv")
    for entry in ENTRIES:
        ledger.add(entry)
    ledger.close()
    assert (tmp_path / "ledger.csv").read_text().splitlines()[0] == (
        "round,client,worker,examples,upload_bytes,download_bytes,upload_values,download_values"
    )
    assert rows(tmp_path / "ledger.csv") == [asdict(entry) for entry in ENTRIES]
    assert ledger.totals == Totals(103 + 108 + 103 + 108, 800, 4 * 40, 4 * 80)


@settings(deadline=None, max_examples=30)
@given(before=st.integers(0, 4), lost=st.integers(0, 4))
def test_a_resumed_ledger_is_the_one_of_a_run_in_one_go(
    tmp_path_factory: pytest.TempPathFactory, before: int, lost: int
) -> None:
    """What was written behind the checkpoint's position is dropped, and entered again as the rounds are run again."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.csv"
    killed = Ledger(path)
    for entry in ENTRIES[:before]:
        killed.add(entry)
    position, totals = killed.sync(), asdict(killed.totals)
    for entry in ENTRIES[before : before + lost]:
        killed.add(entry)
    killed.close()

    resumed = Ledger(path, position, Totals(**totals))
    assert resumed.sync() == position == path.stat().st_size
    for entry in ENTRIES[before:]:
        resumed.add(entry)
    assert resumed.sync() == path.stat().st_size
    resumed.close()
    assert rows(path) == [asdict(entry) for entry in ENTRIES]
    assert resumed.totals == Totals(422, 800, 160, 320)


def test_half_a_row_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    killed = Ledger(path)
    killed.add(ENTRIES[0])
    position = killed.sync()
    killed.close()
    with path.open("a") as file:
        file.write("1,8,0,")
    resumed = Ledger(path, position)
    resumed.add(ENTRIES[1])
    resumed.close()
    assert rows(path) == [asdict(entry) for entry in ENTRIES[:2]]


@pytest.mark.parametrize("left", [None, "", "round,client\n"])
def test_a_ledger_shorter_than_its_checkpoint_is_refused(left: str | None, tmp_path: Path) -> None:
    """Going on would fill the gap with zero bytes."""
    path = tmp_path / "ledger.csv"
    if left is not None:
        path.write_text(left)
    with pytest.raises(ConfigurationError, match="shorter than the 100 bytes"):
        Ledger(path, 100)


def test_a_new_run_starts_an_empty_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.csv").write_text("left over\n")
    Ledger(tmp_path / "ledger.csv").close()
    assert rows(tmp_path / "ledger.csv") == []
