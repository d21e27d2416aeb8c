"""Where settings come from, in which order, and what config.yaml repeats."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.errors import ConfigurationError
from launch.__main__ import main
from launch.configuration import (
    NOT_PART_OF_A_RUN,
    PRECISIONS,
    Settings,
    build_parser,
    flatten,
    read_settings,
    save_yaml,
)
from launch.registry import PRESETS, choices
from methods.flasc import FLASC
from methods.lora import LoRA

USER_MODULE = """
from dataclasses import dataclass

import lightning
from data_partitions.dataset import DataSet
from data_partitions.partition import Partitioner
from fedsim.method import Method

@dataclass
class Mine(Method):
    width: int = 3

class Words(DataSet):
    def __init__(self, path: str, limit: int | None = None):
        self.path, self.limit = path, limit

    def load(self):
        raise NotImplementedError

class Halves(Partitioner):
    def __init__(self, clients: int = 2):
        self.clients = clients

    def split(self, labels, user, generator):
        raise NotImplementedError

class Module(lightning.LightningModule):
    def __init__(self, backbone):
        super().__init__()
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def user_module(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "configuration_user.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(folder)
    import configuration_user  # type: ignore[import-not-found]

    yield configuration_user
    del sys.modules["configuration_user"]


def read(command: str = "") -> Settings:
    return read_settings(command.split())


def saved(folder: Path, settings: Settings) -> Path:
    path = folder / "config.yaml"
    path.write_text(save_yaml(settings.resolved))
    return path


def test_the_preset_digits_is_the_default() -> None:
    assert read().resolved == read("--config digits").resolved
    assert read("--seed 3").resolved == read("--config digits --seed 3").resolved
    settings = read()
    assert isinstance(settings.method, FLASC)
    assert (settings.method.upload_density, settings.run.rounds, settings.client.lr) == (0.25, 100, 0.02)
    assert (settings.resume, settings.run_dir) == ("never", None)


def test_a_config_is_a_preset_a_file_or_both(elsewhere: Path) -> None:
    whole = saved(elsewhere, read("--rounds 7"))
    assert read(f"--config {whole}").run.rounds == 7
    assert read(f"--config={whole.name}").resolved == read("--rounds 7").resolved
    (elsewhere / "some.yaml").write_text("client:\n  lr: 0.5\nmethod:\n  init_args:\n    upload_density: 0.125\n")
    both = read("--config digits --config some.yaml")
    assert both.resolved == read("--client.lr 0.5 --method.upload_density 0.125").resolved


def test_a_file_goes_before_a_preset_of_its_name(elsewhere: Path) -> None:
    (elsewhere / "digits").write_text(save_yaml(read("--rounds 9").resolved))
    assert read("--config digits").run.rounds == 9


def test_the_command_line_overrides_the_file(elsewhere: Path) -> None:
    path = saved(elsewhere, read("--rounds 7 --server.lr 0.5 --method.lora_rank 2"))
    settings = read(f"--config {path} --rounds 3 --server.betas [0.5,0.6] --method.topk_scope layer")
    assert isinstance(settings.method, FLASC)
    assert (settings.run.rounds, settings.server.lr, settings.server.betas) == (3, 0.5, (0.5, 0.6))
    assert (settings.method.lora_rank, settings.method.topk_scope) == (2, "layer")


def test_another_method_keeps_the_keys_that_both_have() -> None:
    settings = read("--method.lora_rank 5 --method.upload_density 0.5 --method LoRA --method.lora_dropout 0.1")
    assert settings.method == LoRA(lora_rank=5, lora_alpha=16, lora_dropout=0.1, lora_targets="query,key,value")
    assert "upload_density" not in settings.resolved["method"]["init_args"]
    assert read("--partition.clients 7 --partition IID").resolved["partition"]["init_args"] == {"clients": 7}


@pytest.mark.parametrize("preset", [choice.name for choice in choices("presets")])
def test_a_preset_spells_every_key_so_that_no_default_of_the_signatures_leaks_in(preset: str) -> None:
    spelt = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
    settings = read(f"--config {preset}")
    everything = {key for key in build_parser().get_defaults().keys() if key not in NOT_PART_OF_A_RUN}  # noqa: SIM118
    for name in ("method", "data", "partition"):
        everything.discard(name)
        parameters = inspect.signature(type(getattr(settings, name))).parameters
        everything |= {f"{name}.{parameter}" for parameter in parameters} | {name}
    assert set(flatten(spelt)) == everything
    assert set(flatten(settings.resolved)) == everything


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--method LoRA --partition IID --client.max_steps 3 --server.optimizer sgd --seed 4",
        "--method.download_density 0.125 --method.lora_targets [query,mlp] --server.eps 1e-3 --precision bf16-mixed",
        "--method configuration_user.Mine --method.width 5 --data configuration_user.Words --data.path x "
        "--partition configuration_user.Halves --client.module configuration_user.Module --backbone.path a/b",
    ],
)
def test_config_yaml_repeats_the_run(command: str, elsewhere: Path, user_module: Any) -> None:
    first = read(f"{command} --run_dir somewhere --resume auto --debug")
    again = read(f"--config {saved(elsewhere, first)}")
    assert again.resolved == first.resolved
    assert not {*first.resolved} & {*NOT_PART_OF_A_RUN}
    assert (again.method, again.client, again.server) == (first.method, first.client, first.server)
    assert (again.run_dir, again.resume) == (None, "never")


@pytest.mark.parametrize("data", sorted(path.stem.removeprefix("lora_") for path in PRESETS.glob("lora_*.yaml")))
def test_twins_differ_in_the_method_alone(data: str) -> None:
    flasc, lora = (read(f"--config {name}_{data}").resolved for name in ("flasc", "lora"))
    own = {"upload_density", "download_density", "topk_scope", "evaluate_before_step", "tiers", "tier_base"}
    ours, theirs = flasc.pop("method"), lora.pop("method")
    assert flasc == lora
    assert {k: v for k, v in ours["init_args"].items() if k not in own} == theirs["init_args"]


def test_a_folder_becomes_absolute_and_a_hub_id_stays(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    (elsewhere / "model").mkdir()
    (elsewhere / "owner" / "name").mkdir(parents=True)
    for given, path in {
        "model": elsewhere / "model",
        "./missing": elsewhere / "missing",
        "~/model": elsewhere / "model",
        "owner/name": elsewhere / "owner" / "name",
    }.items():
        settings = read(f"--backbone.path {given}")
        assert settings.backbone_path == settings.resolved["backbone"]["path"] == str(path)
    assert read("--backbone.path google/vit").backbone_path == "google/vit"
    assert read("--run_dir ~/runs/x").run_dir == elsewhere / "runs" / "x"


def test_an_embedded_backbone_keeps_its_name_so_that_a_checkout_can_be_moved(elsewhere: Path) -> None:
    (elsewhere / "glyphs").mkdir()
    embedded = read("--backbone.path glyphs")
    assert embedded.backbone_path == str(PRESETS.parent / "backbones" / "glyphs")
    assert embedded.resolved["backbone"]["path"] == "glyphs"
    assert read("--backbone.path ./glyphs").backbone_path == str(elsewhere / "glyphs")


def test_classes_of_the_user_are_read_by_class_path(user_module: Any) -> None:
    settings = read(
        "--method configuration_user.Mine --method.width 5 --data configuration_user.Words --data.path here "
        "--partition configuration_user.Halves --partition.clients 4 --client.module configuration_user.Module"
    )
    assert settings.method == user_module.Mine(8, 16, 0, "query,key,value", 5)
    assert isinstance(settings.data, user_module.Words)
    assert (settings.data.path, settings.data.limit) == ("here", None)
    assert isinstance(settings.partition, user_module.Halves)
    assert settings.client.module is user_module.Module
    assert settings.resolved["client"]["module"] == "configuration_user.Module"


def test_a_file_repeats_a_run_of_classes_of_the_current_directory(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file lies in another folder, into which jsonargparse changes while it reads."""
    (elsewhere / "configuration_here.py").write_text(USER_MODULE)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    (elsewhere / "run").mkdir()
    file = saved(elsewhere / "run", read("--method configuration_here.Mine --method.width 4"))
    del sys.modules["configuration_here"]
    assert read(f"--config {file}").method.width == 4
    del sys.modules["configuration_here"]


def test_data_get_the_backbones_tokenizer_where_they_name_none(elsewhere: Path) -> None:
    (elsewhere / "words").mkdir()
    for given, found in {
        "": "openai-community/gpt2",
        "words": str(elsewhere / "words"),
        "a/hub-id": "a/hub-id",
    }.items():
        settings = read("--config flasc_20newsgroups" + (f" --data.tokenizer {given}" if given else ""))
        assert settings.data.tokenizer == settings.resolved["data"]["init_args"]["tokenizer"] == found


def test_a_name_known_by_its_class_path_is_the_same_method() -> None:
    assert read("--method methods.lora.LoRA").resolved == read("--method LoRA").resolved


def test_print_config_prints_what_config_reads(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "--method", "LoRA", "--rounds", "5", "--print_config"])
    assert left.value.code in (0, None)
    (elsewhere / "printed.yaml").write_text(capsys.readouterr().out)
    assert read("--config printed.yaml").resolved == read("--method LoRA --rounds 5").resolved


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "--help"])
    assert left.value.code in (0, None)
    out = capsys.readouterr().out
    keys = [key for key in build_parser().get_defaults().keys() if key != "config"]  # noqa: SIM118
    assert [key for key in keys if f"--{key}" not in out] == []
    assert all(precision in out for precision in PRECISIONS)
    with pytest.raises(SystemExit) as left:
        main(["run", "--method.help", "FLASC"])
    assert left.value.code in (0, None)
    assert "upload_density" in capsys.readouterr().out


def test_flat_settings_are_the_keys_of_the_command_line() -> None:
    flat = flatten(read().resolved)
    assert flat["method"] == "methods.flasc.FLASC"
    assert flat["method.upload_density"] == 0.25
    assert flat["client.module"] is None
    rebuilt = [f"--{key}={str(value).replace(' ', '')}" for key, value in flat.items() if value is not None]
    assert read_settings(rebuilt).resolved == read().resolved


def test_nobody_owes_anything_to_factors_that_are_made_anew(elsewhere: Path) -> None:
    owing = ["--communication.error_feedback", "true", "--method"]
    for method in ("FLoRAStacking", "FlexLoRA"):
        with pytest.raises(
            ConfigurationError, match=rf"error_feedback is given, but {method} makes new .* leave it out"
        ):
            read_settings([*owing, method])
    assert read_settings([*owing, "FedIT"]).communication.error_feedback


def test_a_method_without_an_optimiser_refuses_one_by_hand(elsewhere: Path) -> None:
    """Presets and config.yaml spell the server's keys for every method; on the command line they would mislead."""
    for given in ("--server.lr", "--server.weighting"):
        value = "0.1" if given == "--server.lr" else "examples"
        with pytest.raises(ConfigurationError, match=rf"{given} is given, but FedIT takes over .* leave it out"):
            read_settings(["--method", "FedIT", given, value])
    assert read_settings(["--method", "FFALoRA", "--server.lr", "0.1"]).server.lr == 0.1
    (elsewhere / "run.yaml").write_text(save_yaml(read_settings(["--method", "FedIT"]).resolved))
    assert read_settings(["--config", "run.yaml"]).method.label == "FedIT"


def test_a_class_with_types_for_type_checkers_alone_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose types cannot be told, and so not whether null is one of their values."""
    (tmp_path / "lazily_typed.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from data_partitions.dataset import DataSet\n"
        "if TYPE_CHECKING:\n"
        "    from decimal import Decimal\n"
        "class Lazy(DataSet):\n"
        "    def __init__(self, path: str, share: Decimal | None = None):\n"
        "        self.share = share\n"
        "    def load(self):\n"
        "        raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = read_settings(["--config", "digits", "--data", "lazily_typed.Lazy", "--data.path", "x"])
    assert settings.resolved["data"]["init_args"] == {"path": "x", "share": None}
