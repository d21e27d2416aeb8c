"""`fedsim partition`: the partition of a run, saved, loaded, described and drawn."""

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_partitions.dataset import FederatedData
from data_partitions.paper_tables import PAPER_ROWS, disagreement
from data_partitions.partition import Partition
from data_partitions.partitioners.iid import IID
from launch.__main__ import COMMANDS, main
from launch.configuration import read_settings
from launch.partition import FILES
from launch.reports.canvas import render
from launch.reports.partition_figure import BARS, COLOURS, bin_edges, draw_partition, drawn_clients
from launch.reports.partition_table import Subject, describe

ONE = "partitions/Dirichlet-Digits-s0-0"
KEYS = "--partition.clients 12 --partition.alpha 0.3 --seed 5"
USER_MODULE = """
import numpy as np
import torch
from data_partitions.dataset import DataSet, FederatedData

class Letters(DataSet):
    def __init__(self, examples: int = 40, labelled: bool = True):
        self.examples, self.labelled = examples, labelled

    def load(self):
        rows = torch.arange(self.examples)
        columns = {"input_ids": rows[:, None]} | ({"labels": rows % 4} if self.labelled else {})
        names = ("a", "b", "c", "d") if self.labelled else ()
        return FederatedData(columns, columns, names, "text_classification", user=np.arange(self.examples) // 8)
"""


@pytest.fixture
def here(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and a user's data set on the path."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "partition_user.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(modules)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of KEYS; not to be written to."""
    folder = tmp_path_factory.mktemp("partitions") / "made"
    assert ask(f"{KEYS} --out {folder}") == 0
    return folder


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering is most of the time; the tests that ask for `pictures` have real ones."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("launch.partition.render", lambda figure, kind: figure.get_suptitle().encode())


@pytest.fixture
def pictures() -> None:
    """Asked for by the tests that need real pictures."""


def ask(command: str) -> int:
    return main(["partition", *command.split()])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(text: str) -> dict[str, list[str]]:
    """The rows of the printed table by name."""
    rows = re.findall(r"^ (\S+(?: \S+)*) {2,}(\d.*)$", text, re.MULTILINE)
    return {name: values.split() for name, values in rows}


def test_it_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "partition" in COMMANDS
    assert main(["--help"]) == 0
    assert re.search(r"^  partition +make a partition", capsys.readouterr().out, re.MULTILINE)


def test_it_is_the_partition_of_the_run(here: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows that `fedsim run` deals with the same keys, and beside them the settings of that run."""
    assert main(["run", *KEYS.split(), "--rounds", "1", "--cohort_size", "2", "--run_dir", "run"]) == 0
    partition, ran = (Partition.load(folder / "partition.npz") for folder in (made, here / "run"))
    assert partition.digest() == ran.digest()
    assert partition.arguments == ran.arguments | {"data": "Digits", "seed": 5}
    assert yaml.safe_load((made / "config.yaml").read_text()) == read_settings(KEYS.split()).resolved
    capsys.readouterr()
    assert ask("--load run") == 0
    assert capsys.readouterr().out.startswith("Digits, Dirichlet (alpha 0.3, clients 12), seed 5\n")


def test_files_and_description(here: Path, capsys: pytest.CaptureFixture[str], pictures: None) -> None:
    assert ask("") == 0
    out = capsys.readouterr().out
    assert sorted(contents(here)) == sorted(f"{ONE}/{name}" for name in FILES)
    with np.load(f"{ONE}/partition.npz", allow_pickle=False) as archive:
        arguments = json.loads(str(archive["arguments"]))
    assert arguments == {"partitioner": "Dirichlet", "clients": 100, "alpha": 0.5, "data": "Digits", "seed": 0}
    assert (here / ONE / "partition.png").read_bytes().startswith(b"\x89PNG")
    assert b"Every 2nd of 100 clients, by size" in (here / ONE / "partition.svg").read_bytes()
    lines = out.splitlines()
    assert lines[0] == "Digits, Dirichlet (alpha 0.5, clients 100), seed 0"
    assert lines[1] == "1,437 examples over 100 clients; image_classification"
    assert lines[-1] == f"written to {ONE}: {', '.join(FILES)}"
    assert len(lines) < 20
    assert max(map(len, lines[:-1])) <= 80
    rows = table(out)
    assert list(rows) == ["examples", "labels", "entropy (bits)", "distance", "largest share"]
    assert rows["examples"] == ["12", "13", "14", "15", "18", "14.4", "1,437"]
    assert rows["entropy (bits)"][-1] == "3.32"


def test_a_saved_partition_is_drawn_and_described_alike(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--data partition_user.Letters --partition IID --partition.clients 4") == 0
    folder = "partitions/IID-Letters-s0-0"
    before, made = contents(here), capsys.readouterr().out.splitlines()
    assert ask(f"--load {folder}") == 0
    loaded = capsys.readouterr().out.splitlines()
    assert loaded[:-1] == made[:-1]
    assert contents(here) == before
    assert ask(f"--load {folder}/partition.npz --data partition_user.Letters --out elsewhere") == 0
    assert capsys.readouterr().out.splitlines()[:-1] == made[:-1]
    assert sorted(contents(here / "elsewhere")) == ["partition.png", "partition.svg"]


def test_users_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--data partition_user.Letters --partition Natural") == 0
    rows = table(capsys.readouterr().out)
    assert rows["users"] == ["1", "1", "1", "1", "1", "1", "5"]
    assert rows["examples"] == ["8", "8", "8", "8", "8", "8", "40"]
    assert rows["distance"] == ["0.00"] * 7


def printed_beside(name: str, data: FederatedData | None, sizes: list[int]) -> str:
    """What is printed of these data with clients of these sizes, the rows in the middle with single spaces."""
    partition = dealt(sizes)
    partition.arguments.update(data=name)
    stream = io.StringIO()
    describe(Subject(partition, data), Console(file=stream, width=80))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    return re.sub(r" +", " ", stream.getvalue())


def labelled(examples: int, names: tuple[str, ...], task: str) -> FederatedData:
    columns = {"labels": torch.arange(examples) % 3}
    return FederatedData(columns, columns, names, task, classes=np.arange(examples) % 3)


def test_what_is_loaded_stands_beside_the_papers_rows() -> None:
    """Empty clients do not count; the labels are those that have names, whether they occur or not."""
    data = labelled(1205, tuple("abcdefghijklmnopqrst"), "text_classification")
    text = printed_beside("TwentyNewsgroups", data, [1200, 0, 5])
    assert " TwentyNewsgroups clients examples classes metric or task" in text
    assert " FLASC, Table 2 350 20K 20 accuracy \n" in text
    assert " FLASC, Table 4 350 20K 20 sequence classification \n" in text
    assert " here 2 1,205 20 text_classification" in text
    assert "disagree" not in text
    assert " here 1 5 3 " in printed_beside("CIFAR10", labelled(5, (), "image_classification"), [5])
    assert " here 1 5 - - " in printed_beside("FLAIR", None, [5])


def test_where_the_papers_rows_differ_a_line_says_so() -> None:
    """The classes of the paper are GPT-2's tokens there; which of them a model knows, the data do not say."""
    text = printed_beside("Reddit", labelled(9, (), "language_modelling"), [4, 5])
    assert " FLASC, Table 2 20K 2M 50257 perplexity" in text
    assert " FLASC, Table 4 32K 1.1M 50257 next token prediction \n" in text
    assert " here 2 9 - language_modelling" in text
    assert "Tables 2 and 4 disagree on Reddit: 20K or 32K clients, 2M or 1.1M examples\n" in text
    assert [name for name in PAPER_ROWS if disagreement(name)] == ["Reddit"]


def test_the_paper_says_nothing_of_other_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--data partition_user.Letters --partition IID --partition.clients 4") == 0
    out = capsys.readouterr().out
    assert "FLASC" not in out
    assert "here " not in out


def test_without_the_data_sizes_are_described(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partition = IID(3).split(np.zeros(10, dtype=np.int64), None, np.random.default_rng(0))
    partition.save("mine.npz")
    assert ask("--load mine.npz") == 0
    out = capsys.readouterr().out
    assert out.startswith("IID (clients 3)\n10 examples over 3 clients\n")
    assert list(table(out)) == ["examples"]
    assert "no labels: give the data, as --data NAME" in out
    assert sorted(contents(here)) == ["mine.npz", "mine.png", "mine.svg"]
    (here / "config.yaml").write_text("data: [")
    assert ask("--load mine.npz") == 0
    assert "no labels: " in capsys.readouterr().out
    assert ask("--load mine.npz --data partition_user.Letters --data.labelled false") == 0
    out = capsys.readouterr().out
    assert "text_classification without labels" in out
    assert list(table(out)) == ["examples", "users"]


def test_the_same_again_and_another_beside_it(here: Path) -> None:
    assert ask("") == 0
    before = contents(here)
    assert ask("") == 0
    assert contents(here) == before
    assert ask("--partition.alpha 5") == 0
    assert sorted(path.name for path in (here / "partitions").iterdir()) == [
        "Dirichlet-Digits-s0-0",
        "Dirichlet-Digits-s0-1",
    ]


def test_fewer_clients_than_a_cohort(here: Path) -> None:
    assert ask("--partition.clients 1 --out one") == 0
    assert Partition.load("one/partition.npz").clients == 1


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("mine.npz", ["mine.npz stands without a key", "--load mine.npz"]),
        ("--partition Dirichle", ["unknown partitioner 'Dirichle'", "did you mean Dirichlet"]),
        ("--seed -1", ["seed is -1", "0 or more"]),
        ("--partition Natural", ["without users", "use Dirichlet or IID"]),
        ("--data partition_user.Letters --data.labelled false", ["Letters has no column labels", "give every"]),
        ("--partition.alpha 0.1 --out made", ["made holds another partition", "--out DIR"]),
        ("--out lonely", ["lonely holds another partition", "--out DIR"]),
        ("--out a_file", ["a_file cannot be written", "--out DIR"]),
        ("--load made --out a_file/x", ["a_file/x cannot be written", "--out DIR"]),
        ("--load nowhere", ["nowhere does not exist", ".npz file"]),
        ("--load lonely", ["lonely/partition.npz does not exist", ".npz file"]),
        ("--load a_file", ["a_file is no partition", "make it again"]),
        ("--load made --data partition_user.Letters", ["deals row 1436", "Letters has 40", "--data NAME"]),
        ("--load made --data Digit", ["unknown dataset 'Digit'", "did you mean Digits?"]),
        ("--load", ["--load", "fedsim partition --help"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    command: str, says: list[str], here: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, here / "made")
    (here / "a_file").write_text("something")
    (here / "lonely").mkdir()
    (here / "lonely" / "partition.png").write_bytes(b"somebody's")
    before = contents(here)
    capsys.readouterr()
    assert ask(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedsim: ")
    assert err.count("\n") == 1
    assert [part for part in says if part not in err] == [], err
    assert contents(here) == before


def test_a_write_that_fails_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full at the last picture: what was written before goes, too."""
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".svg":
            raise OSError(28, os.strerror(28))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert ask("--out new") == 2
    assert "new cannot be written (No space left on device)" in capsys.readouterr().err
    assert contents(here) == {}
    assert list((here / "new").iterdir()) == []


def dealt(sizes: list[int]) -> Partition:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Partition(offsets, np.arange(offsets[-1]), {"partitioner": "Mine"})


@given(st.integers(1, 50_000))
@settings(deadline=None, max_examples=60)
def test_the_sample_of_clients_is_small_and_even(clients: int) -> None:
    sizes = np.random.default_rng(clients).integers(0, 1000, clients)
    chosen, _ = drawn_clients(sizes)
    assert len(chosen) == len(np.unique(chosen))
    assert min(clients, BARS // 2) <= len(chosen) <= BARS
    if clients > BARS:
        assert (np.diff(sizes[chosen]) <= 0).all()
        assert abs(np.median(sizes[chosen]) - np.median(sizes)) < 60


@given(st.integers(1, 10**7), st.integers(0, 10**7), st.integers(8, 40), st.booleans())
@settings(deadline=None)
def test_every_size_is_in_one_bin(smallest: int, more: int, bins: int, logarithmic: bool) -> None:
    edges = bin_edges(smallest, smallest + more, bins, logarithmic)
    assert (np.diff(edges) >= 1).all()
    assert len(edges) <= bins + 2
    assert edges[0] < smallest <= smallest + more < edges[-1]


def bars(panel: Any) -> dict[str, list[float]]:
    """The heights of the bars by label."""
    return {container.get_label(): [bar.get_height() for bar in container] for container in panel.containers}


def test_bars_are_counts_of_labels() -> None:
    figure = draw_partition(dealt([3, 0, 2]), np.array([0, 1, 1, 1, 0]), ("no", "yes"), ["Mine"])
    left, right = figure.axes
    assert bars(left) == {"no": [1, 0, 1], "yes": [2, 0, 1]}
    assert left.get_title(loc="left") == "All clients"
    assert right.get_title(loc="left") == "3 clients, 1 empty"
    assert right.get_xscale() == "linear"


def test_many_uneven_clients() -> None:
    """40,000 clients: a sample, shares instead of counts, and a logarithmic axis without the empty ones."""
    sizes = np.sort((np.random.default_rng(0).pareto(1.0, 40_000) * 3).astype(np.int64))
    labels = np.arange(sizes.sum()) % 2
    left, right = draw_partition(dealt(sizes.tolist()), labels, (), ["Mine"]).axes
    assert left.get_title(loc="left") == "Every 667th of 40,000 clients, by size"
    assert left.get_ylabel() == "Share of the client's examples (%)"
    assert np.allclose(np.add(*bars(left).values()), np.where(sizes[::-1][333::667] > 0, 100, 0))
    assert right.get_xscale() == "log"
    assert sum(bar.get_height() for bar in right.patches) == (sizes > 0).sum()
    assert right.get_title(loc="left") == f"40,000 clients, {(sizes == 0).sum():,} empty"


def test_the_rarest_of_many_labels_are_grey() -> None:
    labels = np.concatenate([np.arange(1000), np.arange(20).repeat(5)])
    (left, _) = draw_partition(dealt([1000, 100]), labels, (), ["Mine"]).axes
    shown = bars(left)
    assert list(shown) == [*map(str, range(20)), "other (980 labels)"]
    assert shown["7"] == [1, 5]
    assert shown["other (980 labels)"] == [980, 0]
    assert len(set(COLOURS)) == len(COLOURS) == 20


@pytest.mark.parametrize("sizes", [[0], [0, 0], [1], [5] * 3, [1, 40], [10**6, 1]], ids=str)
def test_odd_sizes_are_drawn_and_described_without_a_warning(sizes: list[int], recwarn: Any) -> None:
    partition = dealt(sizes)
    columns = {"labels": torch.arange(max(2, sum(sizes))) % 3}
    subject = Subject(partition, FederatedData(columns, columns, ("_a", "b", "$c_{$"), "text_classification"))
    stream = io.StringIO()
    describe(subject, Console(file=stream, width=80))
    for labels in (None, subject.labels):
        figure = draw_partition(partition, labels, ("_a", "b", "$c_{$"), subject.heading)
        if sum(sizes) < 100:
            assert render(figure, "svg").endswith(b"</svg>\n")
    assert "examples" in table(stream.getvalue())
    assert [str(warning.message) for warning in recwarn if warning.category is not DeprecationWarning] == []
