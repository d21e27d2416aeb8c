"""The commands that README and docs show, as a shell makes them of what is written: loops, variables and all."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
STAND_INS = (
    *("apt-get", "fedsim", "head", "make", "pip", "python", "python3", "sbatch", "tensorboard", "torchrun", "unzip"),
)
"""What the pages call; anything else is a command that the shell does not find."""

_WRITE_DOWN = """#!/bin/sh
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\1\\0'; } >> "$WRITTEN_DOWN"
"""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str, folder: Path) -> list[tuple[str, ...]]:
    """Runs a page's bash blocks with stand-ins that do nothing but write down what they were called with.

    Args:
        page: of `PAGES`.
        folder: an empty one, to run in.

    Returns:
        Program and arguments of each call, in order.

    Raises:
        AssertionError: a block fails: it is no bash, or calls what has no stand-in.
    """
    programs, written = folder / "programs", folder / "written-down"
    (folder / ".venv").mkdir()
    programs.mkdir()
    (folder / ".venv" / "bin").symlink_to(programs)
    (programs / "activate").touch()
    for name in STAND_INS:
        (programs / name).write_text(_WRITE_DOWN)
        (programs / name).chmod(0o755)
    written.touch()
    script = "set -eu\n" + "\n".join(blocks(page, "bash"))
    variables = {"PATH": str(programs), "WRITTEN_DOWN": str(written), "DATA": "/data", "MODELS": "/models"}
    bash = next(place for place in os.defpath.split(os.pathsep) if (Path(place) / "bash").exists())
    done = subprocess.run(
        [f"{bash}/bash", "-c", script], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"
    calls = written.read_text().split("\1\0")[:-1]
    return [tuple(call.split("\0")[:-1]) for call in calls]
