"""The method that CONTRIBUTING.md shows works as it is written."""

import csv
import json
import re
import sys
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedsim.codec import HEADER_BYTES
from launch.__main__ import main

ROOT = Path(__file__).resolve().parent.parent


def the_code() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    return code


def test_the_method_has_15_lines() -> None:
    """The number that three pages say; blank lines are not counted."""
    lines = sum(bool(line.strip()) for line in the_code().splitlines())
    for page in ("CONTRIBUTING.md", "README.md", "docs/architecture.md"):
        (told,) = re.findall(
            r"(?:A method in|CONTRIBUTING\.md\) shows one in|differ: \[)\s*(\d+) lines", (ROOT / page).read_text()
        )
        assert int(told) == lines, page


def test_the_method_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By class path, on both trainers: A never moves, B does, and only the values of B and the head are paid for."""
    (tmp_path / "my_method.py").write_text(the_code())
    monkeypatch.syspath_prepend(tmp_path)
    adapters = {}
    for name, pack in (("start", "1"), ("one", "1"), ("packed", "4")):
        rounds = "1" if name == "start" else "3"
        run = tmp_path / name
        options = ["--method", "my_method.OnlyB", "--rounds", rounds, "--cohort_size", "4", "--client.pack", pack]
        assert main(["run", *options, "--run_dir", str(run)]) == 0
        adapters[name] = load_file(run / "adapter" / "adapter_model.safetensors")
    factors = {name: [key for key in adapters["one"] if f"lora_{name}" in key] for name in "AB"}
    for name in ("one", "packed"):
        assert all((adapters[name][key] == adapters["start"][key]).all() for key in factors["A"])
        assert all((adapters[name][key] != adapters["start"][key]).any() for key in factors["B"])
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    in_a = sum(adapters["one"][key].numel() for key in factors["A"])
    count = summary["trainable_parameters"] - in_a
    with (tmp_path / "one" / "ledger.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["examples"] != "0"]
    assert rows
    for row, way in product(rows, ("upload", "download")):
        assert int(row[f"{way}_values"]) == count
        assert int(row[f"{way}_bytes"]) == HEADER_BYTES + 4 * count  # no index among them
    sys.modules.pop("my_method")
