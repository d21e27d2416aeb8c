"""What noise and cohorts of a private run are drawn from: 128 bits of the system, kept beside the checkpoints alone."""

import os
import secrets
from pathlib import Path

from fedsim.errors import ConfigurationError
from fedsim.options import PrivacyOptions
from fedsim.transport import Workers

SECRET = "noise.key"
"""In checkpoint/, in hexadecimal."""


def agree_on_secret(options: PrivacyOptions, folder: Path | None, workers: Workers) -> int | None:
    """Returns what noise and cohorts are drawn from, the same on every worker; None for the run's seed.

    Drawn once by the system and kept beside the checkpoints, for the owner's eyes alone, so that a round that is done
    again after a death has the noise that it had.

    Args:
        options: the keys of privacy.
        folder: the run directory on the server worker, None on the others.
        workers: the processes of the run; all call this.

    Raises:
        ConfigurationError: the file is there and holds no such number.
    """
    if options.clip is None or options.noise_from == "seed":
        return None
    secret = _kept_secret(folder / "checkpoint" / SECRET) if folder is not None else 0
    return int(workers.tell({"secret": f"{secret:032x}"}, {})[0]["secret"], 16)


def require_secret(options: PrivacyOptions, folder: Path, goes_on: bool) -> None:
    """Refuses to go on with a secret that cannot be had again, before anything is written.

    Args:
        options: the keys of privacy.
        folder: the run directory.
        goes_on: whether there is a checkpoint, so that rounds behind it may be done again.

    Raises:
        ConfigurationError: the secret is damaged, or gone though rounds were drawn from it.
    """
    if options.clip is None or options.noise_from == "seed":
        return
    path = folder / "checkpoint" / SECRET
    if path.exists():
        _read_secret(path)
    elif goes_on:
        raise ConfigurationError(
            f"{path} is missing, so the noise of this run cannot be drawn again: rounds behind the checkpoint would get"
            " another one, for which nobody has paid; bring the file back, or start in another run_dir"
        )


def _kept_secret(path: Path) -> int:
    """Reads the secret, or draws it and brings it to disk before anything is drawn from it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secrets.randbits(128):032x}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    return _read_secret(path)


def _read_secret(path: Path) -> int:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if len(text) != 32 or not all(digit in "0123456789abcdef" for digit in text):
        raise ConfigurationError(
            f"{path} is damaged, so the noise of this run cannot be drawn again; start it in another run_dir"
        )
    return int(text, 16)
