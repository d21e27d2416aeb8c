"""Packed steps that torch.compile made: the same results, compiled once."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from launch.__main__ import main
from methods.lora import LoRA
from tests import tiny

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")), reason="needs a C++ compiler"
)
BACKENDS = ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])]
"""What is read and cut into graphs, alone, and all of it, with a C++ compiler, which takes its time."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_compiled_step_equals_an_eager_one_and_is_compiled_once(
    dropout: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of clients of different length, with an evaluation in between; LoRA's dropout is drawn per slot."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    built = tiny.build(LoRA(lora_rank=2, lora_dropout=dropout))
    eager, compiled = built.packed(2), built.packed(2, compile=True)
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for round in range(2):
        jobs = [built.job(client, size, start=built.start(round)) for client, size in enumerate((5, 9, 2))]
        expected = {trained.job.client: trained for trained in eager.train(jobs)}
        for trained in compiled.train(jobs):
            other = expected[trained.job.client]
            assert (trained.vector - other.vector).norm() <= 1e-5 * (other.vector - trained.job.start).norm()
            assert trained.logged == pytest.approx(other.logged, abs=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
        built.model.eval()
        with torch.no_grad():
            built.model(pixel_values=built.data.test["pixel_values"])
    assert graphs[0] == graphs[1] >= 1


def test_what_cannot_be_compiled_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine without a compiler."""

    def broken(*_: object, **__: object) -> object:
        def step(batch: object) -> object:
            raise RuntimeError("No working C++ compiler found\nin torch._inductor.config.cpp.cxx")

        return step

    monkeypatch.setattr(torch, "compile", broken)
    run = str(tmp_path / "run")
    assert main(["run", "--client.pack", "2", "--client.compile", "true", "--run_dir", run]) == 2
    said = capsys.readouterr().err
    assert "client.compile: a packed step cannot be compiled (RuntimeError: No working C++ compiler found in " in said
    assert not (tmp_path / "run").exists()
