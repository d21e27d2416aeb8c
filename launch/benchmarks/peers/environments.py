"""Where other simulators are installed: an environment each, made on request, above this one's packages.

Their needs contradict each other's and the engine's (packaging, protobuf), so they cannot share its environment. What
decides speed is shared, so that only the simulators differ: torch, transformers and PEFT are this environment's.
"""

import subprocess
import sys
import venv
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from fedsim.errors import ConfigurationError

CACHE = Path("~/.cache/fedsim/peers")
HOW = "fedsim bench --install_peers"
SHARED = ("torch", "transformers", "peft", "numpy")
"""Packages of this environment that a peer must use as they are."""


@dataclass(frozen=True)
class Peer:
    """One simulator.

    Attributes:
        requirements: what pip installs for it; further needs are pip's choice among what these allow.
        module: does its rounds: `serve(arena, told)`, imported by its own Python only.
        variables: of its processes' surroundings.
    """

    requirements: tuple[str, ...]
    module: str
    variables: dict[str, str] = field(default_factory=dict)


PEERS = {
    "pfl": Peer(
        ("pfl==0.6.0",),
        "launch.benchmarks.peers.pfl_research",
        {"PFL_PYTORCH_DEVICE": "cpu"},  # as all are measured; else it takes any GPU that it finds
    ),
    "flower": Peer(
        ("flwr[simulation]==1.42.0",),
        "launch.benchmarks.peers.flower",
        {"FLWR_HOME": ".", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
}
"""By the contestant's name."""


def not_installed(who: str) -> str | None:
    """Says how to install a peer, if it is not there as it is wanted here."""
    try:
        made = _mark(who).read_text()
    except OSError:
        made = ""
    return None if made == _wanted(who) else f"not installed: {HOW}"


def python(who: str) -> Path:
    """Names a peer's Python."""
    return _folder(who) / "bin" / "python"


def install(who: str) -> None:
    """Makes a peer's environment anew.

    Raises:
        ConfigurationError: pip could not; it has said why.
    """
    folder = _folder(who)
    print(f"{who}: {', '.join(PEERS[who].requirements)} into {folder}", flush=True)
    venv.create(folder, clear=True, symlinks=True, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Behind the environment's own in the order of import; pip, too, takes what is found there for installed.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in _packages()]
    (packages / "measured_from.pth").write_text("".join(lines))
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name)}\n" for name in SHARED))
    pip = [str(python(who)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--constraint", str(constraints), *PEERS[who].requirements])
    if done.returncode:
        raise ConfigurationError(f"pip could not install {', '.join(PEERS[who].requirements)}; it says why above")
    _mark(who).write_text(_wanted(who))  # last, so that half an environment does not pass for one


def _folder(who: str) -> Path:
    return CACHE.expanduser() / who


def _mark(who: str) -> Path:
    return _folder(who) / "made_of.txt"


def _wanted(who: str) -> str:
    """Everything that an environment depends on, a line each."""
    shared = [f"{name}=={version(name)}" for name in SHARED]
    return "\n".join([*PEERS[who].requirements, sys.version, *_packages(), *shared, ""])


def _packages() -> list[str]:
    """Names the folders of installed packages that this process imports from."""
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
