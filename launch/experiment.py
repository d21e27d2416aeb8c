"""One experiment, from its settings to its files."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from rich.console import Console

import fedsim
from fedsim.adapters import export_adapter
from fedsim.progress import Progress
from fedsim.reporting import History, RunFiles
from fedsim.simulation import Result, simulate
from fedsim.transport import Workers
from launch.build import Built, build
from launch.configuration import Settings, flatten
from launch.environment import start_workers, stop_workers
from launch.run_directory import RunDirectory


def run(settings: Settings, console: Console) -> Path | None:
    """Runs one experiment.

    Args:
        settings: what was asked for.
        console: where the server worker shows its progress.

    Returns:
        The run directory on the server worker, None on the others.

    Raises:
        ConfigurationError: settings, data, backbone or run directory do not fit; nothing was written.
    """
    fabric, workers = start_workers(settings.accelerator, settings.precision, settings.threads_per_worker)
    try:
        built = build(settings, fabric)
        if not workers.is_server:
            simulate(built.experiment, workers, None, None)
            return None
        return _serve(settings, built, fabric, workers, console)
    finally:
        stop_workers()


def _serve(settings: Settings, built: Built, fabric: Fabric, workers: Workers, console: Console) -> Path:
    """The server worker's part: the files of the run around the simulation."""
    data = type(settings.data).__name__
    name = f"{type(settings.method).__name__}-{data}-s{settings.seed}"
    directory = RunDirectory.open(settings.run_dir, name, settings.resume == "auto", settings.resolved)
    try:
        checkpoint = directory.checkpoint
        done = checkpoint.round if checkpoint else 0
        for note in (*directory.notes, *([built.note] if built.note else [])):
            console.print(note, soft_wrap=True)
        built.partition.save(directory.path / "partition.npz")
        history = History(**checkpoint.meta["history"]) if checkpoint else History()
        progress = Progress(console, settings.method.label, settings.rounds, done)
        files = RunFiles(directory.path, history, done, progress)
        try:
            result = simulate(built.experiment, workers, files, checkpoint)
            _export(built, result, directory.path, settings.backbone_path)
            identity = _identity(settings, built, workers.count)
            files.finish(identity, built.task.higher_is_better, flatten(settings.resolved))
        finally:
            files.close()
    finally:
        directory.release()
    console.print(f"{settings.method.label}: {directory.path}", highlight=False, soft_wrap=True)
    return directory.path


def _export(built: Built, result: Result, folder: Path, backbone_path: str) -> None:
    """Writes the main view as a PEFT folder."""
    built.experiment.parameters.load(result.vector)
    export_adapter(built.model, folder / "adapter", backbone_path)


def _identity(settings: Settings, built: Built, workers: int) -> dict[str, Any]:
    """What summary.json says of the run itself."""
    libraries = ("torch", "lightning", "transformers", "peft", "numpy")
    return {
        "name": settings.method.label,
        "method": type(settings.method).__name__,
        "seed": settings.seed,
        "rounds": settings.rounds,
        "workers": workers,
        "threads_per_worker": settings.threads_per_worker,
        "pack": built.pack,
        "trainable_parameters": built.experiment.parameters.layout.length,
        "versions": {
            "fedsim": fedsim.__version__,
            "python": platform.python_version(),
            **{library: importlib.metadata.version(library) for library in libraries},
        },
    }
