"""The wheel holds everything that a run needs, and works where nothing else is installed."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedsim", "methods", "data_partitions", "launch")
SETUPTOOLS = 77
"""What pyproject.toml builds with; an older one in this environment is no use, so pip then fetches its own."""


def call(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    here = int(importlib.metadata.version("setuptools").partition(".")[0]) >= SETUPTOOLS
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", *(["--no-build-isolation"] if here else []), "--wheel-dir", out, ".", cwd=source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def test_every_module_is_in_the_wheel(names: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {re.sub(r"[/-].*", "", name) for name in names} == {*PACKAGES, "fedsim_lora"}


@pytest.mark.parametrize("folder", ["launch/presets", "launch/backbones/glyphs", "launch/slurm"])
def test_the_files_beside_the_modules_are_in_the_wheel(folder: str, names: set[str], wheel: Path) -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert files
    assert files <= names
    with zipfile.ZipFile(wheel) as archive:
        assert all(archive.read(name) == (ROOT / name).read_bytes() for name in files)


def test_the_wheel_says_what_it_is(names: set[str], wheel: Path) -> None:
    assert "fedsim/py.typed" in names
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert (metadata["Name"], metadata["License-Expression"]) == ("fedsim-lora", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload()
    entry_points = configparser.ConfigParser()
    entry_points.read_string(read(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"fedsim": "launch.__main__:main"}


def test_the_wheel_lists_its_methods_where_nothing_else_is_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    call(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    modules = "torch", "numpy", "rich", "yaml"
    found = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m)])"
    assert call(python, "-c", found, cwd=tmp_path) == "[]\n"
    out = call(python.with_name("fedsim"), "list", "methods", cwd=tmp_path)
    assert {"FLASC", "LoRA"} <= {line.split()[0] for line in out.splitlines()}
    assert call(python, "-m", "launch", "list", cwd=tmp_path).count("digits") >= 1
    assert "usage: fedsim" in call(python.with_name("fedsim"), "--help", cwd=tmp_path)
