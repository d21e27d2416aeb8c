"""The method that CONTRIBUTING.md shows works as it is written."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.__main__ import main

ROOT = Path(__file__).resolve().parent.parent


def test_the_method_in_20_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by class path, on both trainers: A never moves, B does, and only B and the head are paid for."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "my_method.py").write_text(code)
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
    with (tmp_path / "one" / "ledger.csv").open() as file:
        values = {int(row["upload_values"]) for row in csv.DictReader(file)} - {0}
    in_a = sum(adapters["one"][key].numel() for key in factors["A"])
    assert values == {summary["trainable_parameters"] - in_a}
    sys.modules.pop("my_method")
