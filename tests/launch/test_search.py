"""`fedsim search` on real runs: chosen on held-out examples, every byte counted, resumable."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from fedsim import simulation
from fedsim.checkpoint import save_checkpoint
from launch.__main__ import main
from tests.launch.test_sweep import TINY, contents, here

__all__ = ["here"]
KEYS = ("--", *TINY, "--evaluate_every_rounds", "2")
SPACE = ("--ranks", "1", "2", "4", "--densities", "0.5", "1")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def of(name: str, out: Path) -> list[dict[str, str]]:
    return [row for row in rows(out / "search.csv") if row["search"] == name]


def test_a_search_beside_a_grid(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", *SPACE, "--seeds", "0", "1", "--against", "flasc_grid", "--out", "out", *KEYS]
    assert main(command) == 0
    out = here / "out"
    said = capsys.readouterr().out
    found, beside = of("flasc_search", out), of("flasc_grid", out)
    assert (found[0]["lora_rank"], found[0]["density"]) == ("1", "1.0")
    assert (found[1]["lora_rank"], found[1]["density"]) == ("2", "0.5")
    assert found[-1]["lora_rank"] == "4"
    assert found[-1]["density"] == found[-2]["density"]
    assert len(beside) == 6
    for row in (*found, *beside):
        folders = [
            out / f"method=FLASC,lora_rank={row['lora_rank']},upload_density={row['density']}-s{s}" for s in "01"
        ]
        last = [rows(folder / "metrics.csv")[-1] for folder in folders]
        held_out = sorted(float(one["held_out/accuracy"]) for one in last)
        assert float(row["validation"]) == pytest.approx(sum(held_out) / 2)
        assert [float(row["validation_low"]), float(row["validation_high"])] == held_out
        assert float(row["test"]) == pytest.approx(sum(float(one["accuracy"]) for one in last) / 2)
        uploaded = [int(entry["upload_bytes"]) for folder in folders for entry in rows(folder / "ledger.csv")]
        assert int(row["upload_bytes"]) == sum(uploaded)
    for some in (found, beside):
        assert int(some[-1]["accumulated_upload_bytes"]) == sum(int(row["upload_bytes"]) for row in some)
        (chosen,) = (row for row in some if row["chosen"] == "1")
        assert (
            chosen["validation"]
            == some[-1]["best_so_far"]
            == max(some, key=lambda r: float(r["validation"]))["validation"]
        )
    assert [int(row["upload_bytes"]) for row in beside] == sorted(int(row["upload_bytes"]) for row in beside)
    assert "FLASC-Search: FLASC, rank " in said
    assert {"search.csv", "search.png", "search.svg"} <= {path.name for path in out.iterdir()}

    before, table = contents(out), (out / "search.csv").read_bytes()
    assert main(command) == 0
    assert contents(out) == before
    assert (out / "search.csv").read_bytes() == table


def test_halving_saves_bytes_and_goes_on_after_any_stop(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped where it looks, and between, it comes to the same table as in one go."""
    space = ["--ranks", "1", "2", "--densities", "1", "--halving", "2", "--against", "rank_grid"]
    command = ["search", *space, *KEYS, "--rounds", "4", "--checkpoint_every_rounds", "1"]
    assert main([*command[:1], "--out", "whole", *command[1:]]) == 0
    found = [*of("flasc_search", here / "whole"), *of("rank_grid", here / "whole")]
    assert {row["rounds"] for row in found} == {"2", "4"}
    assert {row["rounds"] for row in found if row["chosen"] == "1"} == {"4"}
    for row in of("rank_grid", here / "whole"):
        folder = here / "whole" / f"method=LoRA,lora_rank={row['lora_rank']}-s0"
        assert len(rows(folder / "ledger.csv")) == 2 * int(row["rounds"])

    seen = set()

    def stop(folder: Path, checkpoint: simulation.Checkpoint) -> None:
        save_checkpoint(folder, checkpoint)
        if checkpoint.round >= 2 and len(seen) < 3 and (folder, checkpoint.round) not in seen:
            seen.add((folder, checkpoint.round))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the thread that listens

    monkeypatch.setattr(simulation, "save_checkpoint", stop)
    assert [main([*command[:1], "--out", "cut", *command[1:]]) for _ in range(4)] == [85] * 3 + [0]
    assert (here / "cut" / "search.csv").read_bytes() == (here / "whole" / "search.csv").read_bytes()


FILE = """
base: digits
keys: {rounds: 2, method.lora_rank: 3}
seeds: [0, 1]
search: {ranks: [1, 2], densities: [0.5, 1], against: [rank_grid]}
"""


@pytest.mark.parametrize("command", ["search", "sweep"])
def test_a_search_in_a_file_is_the_one_of_its_options(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.yaml").write_text(FILE)
    assert main([command, "--config", "mine.yaml", "--dry_run", "--", *TINY]) == 0
    of_file = capsys.readouterr().out
    options = ["--ranks", "1", "2", "--densities", "0.5", "1", "--against", "rank_grid", "--seeds", "0", "1"]
    given = ["--config", "digits", "--rounds", "2", *TINY]
    assert main(["search", *options, "--out", "runs/mine", "--dry_run", "--", *given]) == 0
    shown = [line.partition(": fedsim run ")[0] for line in of_file.splitlines()]
    assert shown == [line.partition(": fedsim run ")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown[-1] == "10 runs at most, 0 finished"  # three of FLASC and two of LoRA, two seeds each
    assert not (here / "runs").exists()


def test_options_win_over_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text(FILE)
    assert main(["search", "--config", "mine.yaml", "--ranks", "4", "8", "--seeds", "7", "--dry_run", "--", *TINY]) == 0
    said = capsys.readouterr().out
    assert "lora_rank=4,upload_density=1.0-s7" in said
    assert "lora_rank=1," not in said
    assert said.endswith("5 runs at most, 0 finished\n")


@pytest.mark.parametrize(
    ("text", "argv", "words"),
    [
        ("keys: {rounds: 2}", ["search", "--config", "mine.yaml"], ["mine.yaml has no search:", "fedsim sweep"]),
        (FILE + "grid: {client.lr: [0.1]}", ["sweep", "--config", "mine.yaml"], ["search stands beside grid"]),
        (FILE.replace("ranks", "rank"), ["search", "--config", "mine.yaml"], ["mine.yaml", "did you mean ranks"]),
        (FILE, ["sweep", "--config", "mine.yaml", "--grid", "client.lr=0.1"], ["search stands beside grid"]),
        (FILE, ["sweep", "--config", "mine.yaml", "--slurm"], ["--slurm", "no array"]),
        (FILE, ["search", "--config", "mine.yaml", "--", "--config", "digits"], ["base: digits"]),
        (FILE, ["search", "--config", "none.yaml"], ["none.yaml", "no file"]),
    ],
    ids=["none", "grid", "entry", "given", "slurm", "bases", "file"],
)
def test_a_file_that_is_no_search_is_refused_in_one_line(
    text: str, argv: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.yaml").write_text(text)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert all(word in err for word in words), err
    assert [path.name for path in here.iterdir()] == ["mine.yaml"]


def test_what_is_held_out_already_is_what_is_chosen_by(here: Path) -> None:
    keys = (*KEYS, "--evaluation.held_out", "0.4", "--evaluation.clients", "2")
    assert main(["search", "--ranks", "1", "2", "--densities", "1", "--out", "out", *keys]) == 0
    settings = (here / "out" / "method=FLASC,lora_rank=1,upload_density=1.0-s0" / "config.yaml").read_text()
    assert "held_out: 0.4\n  clients: 2\n" in settings


def test_a_configuration_that_fails_is_the_worst(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here all do, so that nothing is chosen."""
    keys = (*KEYS, "--client.lr", "1e30", "--client.max_steps", "3", "--on_bad_client", "fail")
    assert main(["search", *SPACE, "--out", "out", *keys]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("fedsim: every run of the search failed")
    assert out.count("failed: out/") == 4


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--ranks", "4"], ["ranks is [4]", "two or more"]),
        (["--densities", "0"], ["densities is [0.0]"]),
        (["--against", "everything"], ["everything", "flasc_grid"]),
        (["--halving", "1"], ["halving is 1", "2 or more"]),
        (["--rounds", "3"], ["--rounds is no option of fedsim search", "behind --"]),
        (["--", "--rounds", "3", "--dry_run"], ["--dry_run stands behind --", "fedsim search --dry_run"]),
        (["--", "--ruonds", "3"], ["ruonds", "rounds"]),
        (["--", "--run_dir", "x"], ["run_dir"]),
        (
            ["--halving", "2", "--", "--privacy.epsilon", "8", "--privacy.clip", "1"],
            ["halving is 2", "privacy.noise_multiplier"],
        ),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    argv: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert all(word in err for word in words), err
    assert not list(here.iterdir())
