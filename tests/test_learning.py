"""That learning works at all: everything else here could hold while the model learns nothing."""

import json
from pathlib import Path

import pytest

from launch.__main__ import main

FLOORS = {"LoRA": 0.95, "FLASC": 0.93}


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Final accuracy on handwritten digits after 60 rounds of the default preset, by method; packed, to be quick."""
    found = {}
    for method in FLOORS:
        folder: Path = tmp_path_factory.mktemp("learning") / method
        options = [
            "--method",
            method,
            "--rounds",
            "60",
            "--seed",
            "0",
            "--evaluate_every_rounds",
            "60",
            "--client.pack",
            "10",
        ]
        assert main(["run", *options, "--run_dir", str(folder)]) == 0
        found[method] = json.loads((folder / "summary.json").read_text())["final"]["accuracy"]
    return found


@pytest.mark.parametrize("method", FLOORS)
def test_the_default_learns_handwritten_digits(method: str, accuracies: dict[str, float]) -> None:
    """Both measure 0.97 or so. The floors protect what no comparison of bits sees: a preset with a rate that does not
    learn, a backbone whose weights are not those that were pretrained, an update of the wrong sign or scale, labels
    that lost their images, a density that starves FLASC. They leave room for another machine's rounding, not for those.
    """
    assert accuracies[method] >= FLOORS[method]
