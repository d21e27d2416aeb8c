"""A run's result leaves as plain PEFT and transformers folders that say the same as the run."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification

from data_partitions.datasets.digits import Digits
from launch.__main__ import main
from launch.registry import BACKBONES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds on the default preset."""
    folder = tmp_path_factory.mktemp("export") / "run"
    assert main(["run", "--rounds", "2", "--cohort_size", "3", "--server.lr", "0.05", "--run_dir", str(folder)]) == 0
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=Digits().load().test["pixel_values"]).logits


def adapted(adapter: Path) -> torch.nn.Module:
    """As the documentation loads an adapter: on the backbone, with as many labels as the data has."""
    torch.manual_seed(99)  # the head that is about to be replaced
    backbone = AutoModelForImageClassification.from_pretrained(
        BACKBONES / "glyphs", num_labels=10, ignore_mismatched_sizes=True
    )
    return PeftModel.from_pretrained(backbone, str(adapter))


def test_the_merged_model_gives_the_logits_of_the_adapter(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert main(["export", str(run), "--merge", "--out", str(out)]) == 0
    assert not (out / "adapter_config.json").exists()
    merged = AutoModelForImageClassification.from_pretrained(out)
    expected = logits(adapted(run / "adapter"))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    assert merged.config.id2label == {label: str(label) for label in range(10)}


def test_the_adapter_gives_the_accuracy_of_the_last_evaluation(run: Path) -> None:
    labels = Digits().load().test["labels"]
    right = (logits(adapted(run / "adapter")).argmax(-1) == labels).double().mean()
    names, *_, last = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    assert float(dict(zip(names, last, strict=True))["accuracy"]) == pytest.approx(float(right), abs=1e-6)


def test_without_out_the_merged_model_lies_in_the_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["export", run.name, "--merge"]) == 0
    assert capsys.readouterr().out.splitlines() == ["run/merged"]
    assert (run / "merged" / "config.json").is_file()
    assert main(["export", run.name, "--merge"]) == 2
    assert "run/merged is not empty; give a new folder: --out FOLDER" in capsys.readouterr().err


def test_the_adapter_is_copied(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "copy"
    assert main(["export", str(run), "--out", str(out)]) == 0
    names = {path.name for path in (run / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        name: (run / "adapter" / name).read_bytes() for name in names
    }


def test_an_empty_folder_may_be_given(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "adapter_config.json").is_file()


def test_a_backbone_that_moved_away_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    (copy / "adapter").mkdir(parents=True)
    (copy / "adapter" / "adapter_config.json").write_text("{}")
    settings = (run / "config.yaml").read_text().replace("path: glyphs", "path: /nowhere/glyphs")
    (copy / "config.yaml").write_text(settings)
    assert main(["export", str(copy), "--merge"]) == 2
    assert "backbone.path '/nowhere/glyphs' does not exist" in capsys.readouterr().err
    assert not (copy / "merged").exists()
    (copy / "config.yaml").unlink()
    assert main(["export", str(copy), "--merge"]) == 2
    assert "config.yaml is no file" in capsys.readouterr().err


def test_a_changed_backbone_is_merged_too(tmp_path: Path) -> None:
    """FLoRA by stacking leaves an adapter of zero: all that it learned, but for the head, is in backbone/."""
    run, out = tmp_path / "run", tmp_path / "merged"
    options = ["--method", "FLoRAStacking", "--client.lr", "0.2", "--rounds", "3", "--run_dir", str(run)]
    assert main(["run", *options]) == 0
    assert main(["export", str(run), "--merge", "--out", str(out)]) == 0
    labels = Digits().load().test["labels"]
    merged = logits(AutoModelForImageClassification.from_pretrained(out))
    names, *_, last = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    right = (merged.argmax(-1) == labels).double().mean()
    assert float(dict(zip(names, last, strict=True))["accuracy"]) == pytest.approx(float(right), abs=1e-6)
    assert not torch.allclose(merged, logits(adapted(run / "adapter")), atol=1e-3)
