"""Every mistake is one line that says what was given, what was expected and what to do; nothing is written."""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from launch.__main__ import main

USER_MODULE = """
import lightning
import numpy as np
import torch
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.partition import Partition, Partitioner
from fedsim.method import Method

class BadLabels(DataSet):
    def load(self):
        columns = {"pixel_values": torch.zeros(4, 1, 8, 8), "labels": torch.tensor([0, 1, 2, 7])}
        return FederatedData(columns, columns, ("a", "b", "c"), "image_classification")

class Unlabelled(DataSet):
    def load(self):
        columns = {"pixel_values": torch.zeros(400, 1, 8, 8)}
        return FederatedData(columns, columns, (), "image_classification")

class Beyond(Partitioner):
    def split(self, labels, user, generator):
        rows = np.arange(1, len(labels) + 1)
        return Partition(np.linspace(0, len(rows), 21).astype(np.int64), rows, {})

class Colour(DataSet):
    def load(self):
        columns = {"pixel_values": torch.zeros(400, 3, 8, 8), "labels": torch.arange(400) % 3}
        return FederatedData(columns, columns, ("a", "b", "c"), "image_classification")

class Needy(DataSet):
    def __init__(self, path: str):
        pass

    def load(self):
        raise NotImplementedError

class Breaks(Method):
    def __init__(self, width: int = 1):
        raise RuntimeError("out of luck")

class NoModule:
    def __init__(self, backbone):
        pass

class Greedy(lightning.LightningModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.extra = torch.nn.Linear(2, 2)

class Demanding(lightning.LightningModule):
    def __init__(self, backbone, width):
        super().__init__()

class Plain(lightning.LightningModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def training_step(self, batch, batch_idx):
        logits = self.backbone(pixel_values=batch["pixel_values"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"])

class Silent(Plain):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)

class Rows(Plain):
    def training_step(self, batch, batch_idx):
        return self.backbone(pixel_values=batch["pixel_values"]).logits.sum(1)

class LogsText(Plain):
    def training_step(self, batch, batch_idx):
        self.log("mood", "fine")
        return super().training_step(batch, batch_idx)

class Manual(Plain):
    def __init__(self, backbone):
        super().__init__(backbone)
        self.automatic_optimization = False

class TwoOptimizers(Plain):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1)]
"""

FILES = {
    "a_file": "something",
    "no_mapping.yaml": "- 3\n",
    "empty.yaml": "",
    "broken.yaml": "rounds: 3\nmethod: [FLASC\nseed: 1\n",
    "tab.yaml": "rounds: 3\nclient:\n\tlr: 0.1\n",
    "binary.yaml": b"\xff\xfe\x00",
    "misspelt.yaml": "cohort: 3\n",
    "misspelt_in_group.yaml": "client:\n  momentun: 0.5\n",
    "misspelt_in_method.yaml": "method:\n  class_path: FLASC\n  init_args:\n    upload_densty: 0.5\n",
    "misspelt_method.yaml": "method:\n  class_path: FLAC\n",
    "misspelt_class_path.yaml": "method:\n  clas_path: FLASC\n",
    "number_as_method.yaml": "method: 3\n",
    "text_as_number.yaml": "rounds: many\n",
    "group_as_number.yaml": "client: 3\n",
    "path_as_group.yaml": "backbone: glyphs\n",
    "nan.yaml": "server:\n  lr: .nan\n",
    "no_seconds.yaml": "stop_within_seconds: null\n",
    "no_precision.yaml": "precision: null\n",
    "no_rate.yaml": "client:\n  lr: null\n",
    "no_rank.yaml": "method:\n  class_path: LoRA\n  init_args:\n    lora_rank: null\n",
    "foreign/thesis.txt": "do not overwrite",
}

JARGON = ("<class", "Union", "Subtypes", "Parser key", "Namespace(", "NestedArg", "Traceback", "ArgumentError")


@dataclass(frozen=True)
class Row:
    """A command line, and what its one line on standard error must hold.

    Attributes:
        holding: a run directory whose lock another process has.
    """

    command: str
    says: tuple[str, ...]
    status: int = 2
    holding: str = ""


def row(command: str, *says: str, **fields: str) -> Row:
    return Row(command, says, **fields)  # type: ignore[arg-type]


FRACTION = "expected a fraction in (0, 1]"
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so cuda is no mistake here")

ROWS: list[Row] = [
    # Names: of commands, options, presets, keys and everything pluggable.
    row("rnu", "unknown command 'rnu'", "did you mean run?"),
    row("--rounds 3", "unknown command '--rounds'", "known: ", "run"),
    row("list method", "unknown kind 'method'", "did you mean methods?"),
    row("report --targte accuracy=1 .", "unknown option of fedsim report '--targte'", "did you mean --target?"),
    row("export --merg .", "'--merg'", "did you mean --merge"),
    row("demo --seed 3", "'--seed'", "did you mean --seeds?"),
    row("demo --seeds x", "--seeds", "'x'", "fedsim demo --help"),
    row("run --config digitz", "unknown preset 'digitz'", "did you mean digits or dp_digits?"),
    row("run --config nonsense", "unknown preset 'nonsense'", "known: ", "digits"),
    row("run --methd FLASC", "unknown key 'methd'", "did you mean method?"),
    row("run --cohort 3", "unknown key 'cohort'", "did you mean cohort_size?"),
    row("run --roundz=3", "unknown key 'roundz'", "did you mean rounds?"),
    row("run --lr 3", "unknown key 'lr'", "did you mean client.lr or server.lr?"),
    row("run --lora_rank 3", "unknown key 'lora_rank'", "did you mean method.lora_rank"),
    row("run --nonsense 3", "unknown key 'nonsense'", "known: ", "cohort_size", "rounds"),
    row("run --client.lrr 3", "unknown key of client 'lrr'", "did you mean lr?"),
    row("run --client.learning_rate 3", "unknown key of client 'learning_rate'", "known: ", "lr"),
    row("run --clinet.lr 3", "unknown key 'clinet.lr'", "did you mean client.lr"),
    row("run --method.upload_densty 0.5", "unknown key of FLASC 'upload_densty'", "did you mean upload_density"),
    row("run --method LoRA --method.upload_density 1", "key of LoRA 'upload_density'", "known: ", "lora_rank"),
    row("run --data.path x", "unknown key of Digits 'path'", "takes none"),
    row("run --backbone glyphs", "backbone is a group of keys", "give backbone.path"),
    row("run --client 3", "client is a group of keys", "client.lr"),
    row("run --method FLAC", "unknown method 'FLAC'", "did you mean FLASC?"),
    row("run --method.class_path flacs", "unknown method 'flacs'", "did you mean FLASC?"),
    row("run --method nowhere.Mine", "method nowhere.Mine cannot be imported", "'nowhere'", "fedsim list methods"),
    row("run --method methods.flasc.FLAC", "methods.flasc.FLAC cannot be imported", "no attribute 'FLAC'"),
    row("run --method launch.registry.Choice", "launch.registry.Choice is no Method", "fedsim list methods"),
    row("run --method bad_input_user.Breaks", "bad_input_user.Breaks", "RuntimeError: out of luck"),
    row("run --method bad_input_broken.Mine", "bad_input_broken.Mine cannot be imported", "SyntaxError"),
    row("run --method methods.", "method methods. cannot be imported", "class path"),
    row("run --method null", "method missing", "--method NAME"),
    row("run --data Digts", "unknown dataset 'Digts'", "did you mean Digits?"),
    row("run --data nowhere.Mine", "data nowhere.Mine cannot be imported", "fedsim list datasets"),
    row("run --partition Dirchlet", "unknown partitioner 'Dirchlet'", "did you mean Dirichlet or LabelDirichlet?"),
    # The form of values.
    row("run 3", "3 stands without a key", "--KEY VALUE"),
    row("run --rounds", "--rounds has no value"),
    row("run --method.lora_rank --rounds 3", "--method.lora_rank has no value"),
    row("run --rounds ten", "rounds is ten", "expected a whole number"),
    row("run --rounds 1.5", "rounds is 1.5", "expected a whole number"),
    row("run --client.lr fast", "client.lr is fast", "expected a number"),
    row("run --client.max_steps few", "client.max_steps is few", "a whole number or null"),
    row("run --method.evaluate_before_step maybe", "method.evaluate_before_step is maybe", "true or false"),
    row("run --server.betas 0.9", "server.betas is 0.9", "a list in brackets"),
    row("run --server.betas [0.9]", "server.betas is [0.9]", "a list in brackets with 2 elements"),
    row("run --precision bf16", "precision is bf16", "one of 32-true", "bf16-mixed"),
    row("run --resume always", "resume is always", "one of never, auto"),
    row("run --accelerator gpu", "accelerator is gpu", "one of auto, cpu, cuda"),
    row("run --client.optimizer sdg", "client.optimizer is sdg", "one of sgd, adamw"),
    row("run --server.optimizer adma", "server.optimizer is adma", "one of adam, "),
    row("run --communication.value_dtype float8", "communication.value_dtype is float8", "one of float32"),
    row("run --communication.index_coding huffman", "communication.index_coding is huffman", "one of auto"),
    row("run --method.topk_scope laye", "method.topk_scope is laye", "one of global, layer"),
    # The range of values.
    *(row(f"run --method.{way}_density {d}", f"method.{way}_density is {float(d)}", FRACTION)
      for way in ("upload", "download") for d in ("0", "-1", "1.5")),
    row("run --method.upload_density nan", "method.upload_density is nan", "expected a number"),
    row("run --method.download_density nan", "method.download_density is nan", "expected a number or null"),
    row("run --method.upload_density .nan", "method.upload_density is nan", "expected a finite number"),
    row("run --client.lr nan", "client.lr is nan", "expected a number"),
    row("run --client.lr .nan", "client.lr is nan", "expected a finite number"),
    row("run --server.lr 1e400", "server.lr is inf", "expected a finite number"),
    row("run --server.betas [0.9,.nan]", "server.betas is (0.9, nan)", "expected a finite number"),
    row("run --client.lr 0", "client.lr is 0", "above 0"),
    row("run --server.lr 0", "server.lr is 0", "above 0"),
    row("run --client.momentum 1", "client.momentum is 1.0", "[0, 1)"),
    row("run --client.proximal_mu -0.5", "client.proximal_mu is -0.5", "0 or more"),
    row("run --seed null", "seed is None", "a whole number"),
    row("run --method.lora_rank null", "method.lora_rank is None", "a whole number"),
    row("run --partition IID --partition.clients null", "partition.clients is None", "a whole number"),
    row("run --client.clip_norm 0", "client.clip_norm is 0.0", "above 0, or null"),
    row("run --communication.error_feedback maybe", "communication.error_feedback is maybe", "true or false"),
    row("run --client.batch_size 0", "client.batch_size is 0", "1 or more"),
    row("run --client.pack 0", "client.pack is 0", "1 or more"),
    row("run --rounds 0", "rounds is 0", "1 or more"),
    row("run --seed -1", "seed is -1", "0 or more"),
    row("run --threads_per_worker 0", "threads_per_worker is 0", "1 or more"),
    row("run --cohort_size 0", "cohort_size is 0", "1 or more"),
    row("run --cohort_size 101", "cohort_size is 101", "100 clients", "partition.clients"),
    row("run --partition.clients 0", "partition.clients is 0", "at least 1"),
    row("run --partition.alpha 0", "partition.alpha is 0", "above 0"),
    row("run --method.lora_rank 0", "lora_rank is 0", "at least 1"),
    row("run --method.tiers 0", "method.tiers is 0", "1 or more"),
    row("run --method.tiers 9", "needs a LoRA rank of 256", "got 8", "--method.lora_rank 256"),
    row("run --method.lora_dropout 1", "lora_dropout is 1", "[0, 1)"),
    row("run --method.lora_targets quer", "unknown LoRA role 'quer'", "did you mean query?"),
    row("run --method.lora_targets []", "no LoRA roles", "query, key, value"),
    pytest.param(row("run --accelerator cuda", "accelerator is cuda", "no GPU", "--accelerator cpu"), marks=NO_GPU),
    # What lies elsewhere: backbone, data, the user's own module.
    row("run --backbone.path /nowhere/model", "'/nowhere/model' does not exist", "expected a folder"),
    row("run --backbone.path a_file", "a_file' is a file", "expected a folder"),
    row("run --backbone.path foreign", "foreign' has no config.json", "expected a folder"),
    row("run --backbone.path glyph", "'glyph' is no folder here", "backbone (glyphs)", "--backbone.path FOLDER"),
    row("run --backbone.path fedsim-tests/no-such-model", "'fedsim-tests/no-such-model'", "--backbone.path FOLDER"),
    row("run --backbone.path null", "backbone.path is missing", "give a folder"),
    row("run --data bad_input_user.BadLabels", "label 7 at row 3", "expected 0 to 2"),
    row("run --data bad_input_user.Colour", "glyphs cannot read Colour", "Expected 1 but got 3", "--backbone.path"),
    row("run --data bad_input_user.Needy", "data.path missing", "give --data.path VALUE"),
    row("run --data bad_input_user.Unlabelled", "Unlabelled has no column labels", "pixel_values", "give every"),
    row("run --partition bad_input_user.Beyond", "Beyond deals row 1437 of 1437 training examples", "count from 0"),
    row("run --partition Natural", "without users", "use Dirichlet or IID"),
    row("run --client.module nowhere.Mine", "client.module 'nowhere.Mine' cannot be imported", "class path"),
    row("run --client.module bad_input_broken.Mine", "cannot be imported", "SyntaxError", "class path"),
    row("run --client.module Mine", "client.module 'Mine' cannot be imported", "class path"),
    row("run --client.module launch.registry.PRESETS", "client.module", "is no class", "LightningModule"),
    row("run --client.module bad_input_user.NoModule", "client.module NoModule", "expected a LightningModule"),
    row("run --client.module bad_input_user.Greedy", "trains extra.weight", "freeze it"),
    row("run --client.module bad_input_user.Demanding", "Demanding cannot be made", "takes the backbone alone"),
    row("run --client.module bad_input_user.Silent", "returned NoneType without a loss", "expected a tensor"),
    row("run --client.module bad_input_user.Rows", "returned a loss of shape (2,)", "return its mean"),
    row("run --client.module bad_input_user.LogsText", "logs 'mood' as a str", "log its value"),
    row("run --client.module bad_input_user.Manual", "Manual sets automatic_optimization to False", "leave it out"),
    row("run --client.module bad_input_user.TwoOptimizers", "TwoOptimizers.configure_optimizers returned list",
        "expected one torch optimiser"),
    # Files of settings.
    row("run --config missing.yaml", "missing.yaml is no file", "give a YAML file or a preset"),
    row("run --config foreign", "foreign is no file", "give a YAML file or a preset"),
    row("run --config broken.yaml", "broken.yaml line 3 is no YAML", "correct it"),
    row("run --config tab.yaml", "tab.yaml line 3 is no YAML", "correct it"),
    row("run --config binary.yaml", "binary.yaml cannot be read", "give a YAML file"),
    row("run --config=no_mapping.yaml", "no_mapping.yaml holds a list", "expected keys with values"),
    row("run --config empty.yaml", "empty.yaml holds nothing", "expected keys with values"),
    row("run --config misspelt.yaml", "unknown key 'cohort'", "did you mean cohort_size?"),
    row("run --config misspelt_in_group.yaml", "unknown key of client 'momentun'", "did you mean momentum?"),
    row("run --config misspelt_in_method.yaml", "unknown key of FLASC 'upload_densty'", "did you mean upload_density"),
    row("run --config misspelt_method.yaml", "unknown method 'FLAC'", "did you mean FLASC?"),
    row("run --config misspelt_class_path.yaml", "'clas_path'", "did you mean class_path?"),
    row("run --config number_as_method.yaml", "unknown method '3'", "known: AdapterLTH, ", " FLASC, "),
    row("run --config digits --config text_as_number.yaml", "rounds is many", "expected a whole number"),
    row("run --config digits --config group_as_number.yaml", "client is a group of keys", "client.lr"),
    row("run --config digits --config no_seconds.yaml", "stop_within_seconds is None; expected a number"),
    row("run --config digits --config no_precision.yaml", "precision is None; expected one of 32-true"),
    row("run --config digits --config no_rate.yaml", "client.lr is None; expected a number"),
    row("run --config digits --config no_rank.yaml", "method.lora_rank is None; expected a whole number"),
    row("run --config digits --config nan.yaml", "server.lr is nan", "expected a finite number"),
    row("run --config digits --config path_as_group.yaml", "backbone is a group of keys", "give backbone.path"),
    row("run --config group_as_number.yaml", "method", "missing", "--config digits"),
    # Run directories.
    row("run --run_dir a_file", "run_dir a_file is a file", "give a directory"),
    row("run --run_dir a_file/x", "run_dir a_file/x cannot be written", "choose another"),
    row("run --run_dir foreign", "run_dir foreign holds something that is no run", "a new directory"),
    row("run --run_dir finished", "run_dir finished holds a finished run", "choose another"),
    row("run --run_dir stopped", "holds an unfinished run", "--resume auto"),
    row("run --run_dir stopped --resume auto", "run_dir stopped is in use", "choose another", holding="stopped"),
    row("run --run_dir stopped", "run_dir stopped is in use", "choose another", holding="stopped"),
    row("run {same} --run_dir finished --resume auto", "holds a finished run of 2 rounds", "give more rounds"),
    row("run {same} --run_dir stopped --resume auto --rounds 1", "at round 2", "rounds is 1", "give 2 or more"),
    row("run {same} --run_dir stopped --resume auto --client.lr 0.5 --seed 3", "cannot be resumed",
        "client.lr was 0.02 and is 0.5", "seed was 0 and is 3"),
    row("run {same} --run_dir stopped --resume auto --method LoRA", "cannot be resumed", "method was methods.flasc"),
    row("run --run_dir garbled --resume auto", "garbled/config.yaml cannot be read", "choose another"),
    # Measurements.
    row("bench --repeats 0", "--repeats, --threads and --clients", "1 or more"),
    row("bench --threads 0", "--repeats, --threads and --clients", "1 or more"),
    row("bench --memory_rounds 0", "rounds is 0", "1 or more"),
    row("bench --only bogus/x", "--only is 'bogus/x'", "expected 0/bare", "fedsim_packed"),
    row("bench --only 0", "--only is '0'", "expected 0/bare", "fedsim_packed"),
    row("bench --only 99/bare", "--only is '99/bare'", "a work below 6"),
    row("bench --work bogus", "--work is 'bogus'", "DeiT-Tiny"),
    row("bench --only 0/bare/x", "--only is '0/bare/x'", "expected 0/bare"),
    row("bench --json nowhere/rows.json", "--json is nowhere/rows.json", "no folder nowhere"),
    # Runs that are not there.
    row("report", "runs", "fedsim report --help"),
    row("report nowhere", "nowhere does not exist", "give a run directory"),
    row("report foreign", "no run in foreign", "summary.json"),
    row("report stopped", "no finished run in stopped", "--resume auto"),
    row("report finished --target accuracy", "--target is 'accuracy'", "accuracy=0.8"),
    row("export", "run", "fedsim export --help"),
    row("export nowhere", "nowhere has no adapter/", "give the directory of a finished run"),
    row("export finished", "the adapter is finished/adapter already", "--out", "--merge"),
    row("export finished --merge --out foreign", "foreign is not empty", "--out FOLDER"),
    row("export finished --out a_file", "a_file is a file", "--out FOLDER"),
    row("export finished --out a_file/x", "a_file/x cannot be written", "--out FOLDER"),
]  # fmt: skip

SAME = "--rounds 2 --cohort_size 3"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds; it also takes the cold imports out of the tests' time."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["run", *SAME.split(), "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def workshop(
    tmp_path: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The current directory: files of every kind of mistake, and a user's module on the path."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in ("finished", "stopped", "garbled"):
        shutil.copytree(finished_run, tmp_path / name)
    (tmp_path / "stopped" / "summary.json").unlink()
    (tmp_path / "garbled" / "config.yaml").write_text("method: [")
    modules = tmp_path_factory.mktemp("modules")
    (modules / "bad_input_user.py").write_text(USER_MODULE)
    (modules / "bad_input_broken.py").write_text("def broken(:\n")
    srun = modules / "srun"  # as on a cluster's login node, where Lightning has something to say about it
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{modules}:{os.environ['PATH']}")
    monkeypatch.syspath_prepend(modules)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    sys.modules.pop("bad_input_user", None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def ask(command: str) -> int:
    return main(command.replace("{same}", SAME).split())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.command} {row.holding}".strip())
def test_a_mistake_is_one_line_and_writes_nothing(
    row: Row, workshop: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    before = contents(workshop)
    lock = FileLock(workshop / row.holding / ".lock") if row.holding else None
    if lock is not None:
        lock.acquire()
    started = time.perf_counter()
    try:
        status = ask(row.command)
    finally:
        if lock is not None:
            lock.release()
    assert time.perf_counter() - started < 10  # a quarter of a second where nothing else runs
    out, err = capsys.readouterr()
    assert (status, out) == (row.status, "")
    assert err.startswith("fedsim: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert [part for part in row.says if part not in err] == [], err
    assert [word for word in JARGON if word in err] == [], err
    assert contents(workshop) == before
    shown = [warning for warning in recwarn if not issubclass(warning.category, DeprecationWarning)]
    assert shown == [], "a warning would stand on standard error, too"


def test_training_that_diverges_is_one_line(
    workshop: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """No mistake that can be seen before: the run has begun, and what it wrote stays to be looked at."""
    assert ask("run --rounds 3 --client.lr 1e30 --on_bad_client fail --run_dir new") == 1
    err = capsys.readouterr().err
    where = r"fedsim: the update of client \d+ in round 1: \d+ of \d+ values are not finite"
    assert re.fullmatch(
        where
        + r"; lower client.lr or server.lr, or leave such clients out \(on_bad_client skip\)"
        + r" \(local work; worker 0, round 1\)\n",
        err,
    )
    assert not (workshop / "new" / "summary.json").exists()
    assert (workshop / "new" / "metrics.csv").exists()


def test_a_new_run_dir_is_not_made(workshop: Path) -> None:
    assert ask("run --cohort_size 101 --run_dir new/run") == 2
    assert not (workshop / "new").exists()


def test_debug_adds_the_traceback_before_the_line(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("run --debug --method FLAC") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "fedsim: unknown method 'FLAC'; did you mean FLASC?"


def test_a_module_of_the_current_directory_is_found(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workshop / "bad_input_here.py").write_text("class Here:\n    pass\n")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(workshop))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert ask("run --method bad_input_here.Here") == 2
    assert "bad_input_here.Here is no Method" in capsys.readouterr().err
    sys.modules.pop("bad_input_here", None)
