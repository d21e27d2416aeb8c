"""The files of a report: written all or none."""

import os
from collections.abc import Mapping
from pathlib import Path

from fedsim.errors import ConfigurationError


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes all files under temporary names first, so that a full disk leaves the former report whole.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    temporary = {name: folder / f".{name}.{os.getpid()}.part" for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            temporary[name].write_bytes(content)
        for name in contents:
            os.replace(temporary[name], folder / name)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {folder} ({error.strerror}); give another folder, --out DIR"
        ) from error
    finally:
        for path in temporary.values():
            if path.exists():
                path.unlink()
