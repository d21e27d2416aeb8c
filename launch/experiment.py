"""One experiment, from its settings to its files."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from rich.console import Console

import fedsim
from data_partitions.partition import Partition
from fedsim.adapters import export_adapter
from fedsim.errors import ConfigurationError
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
        return run_on(settings, fabric, workers, console)
    finally:
        stop_workers()


def run_on(settings: Settings, fabric: Fabric, workers: Workers, console: Console) -> Path | None:
    """Runs one experiment on workers that have already found each other; otherwise as `run`."""
    built = build(settings, fabric)
    if not workers.is_server:
        simulate(built.experiment, workers, None, None)
        return None
    name = f"{type(settings.method).__name__}-{type(settings.data).__name__}-s{settings.run.seed}"
    with RunDirectory.open(settings.run_dir, name, settings.resume == "auto", settings.resolved) as directory:
        checkpoint = directory.checkpoint
        for note in (*directory.notes, *([built.note] if built.note else [])):
            console.print(note, soft_wrap=True)
        _keep_partition(built.partition, directory.path / "partition.npz", resuming=checkpoint is not None)
        history = History(**checkpoint.meta["history"]) if checkpoint else History()
        done = checkpoint.round if checkpoint else 0
        progress = Progress(console, settings.method.label, settings.run.rounds, done)
        with RunFiles(directory.path, history, done, progress) as files:
            result = simulate(built.experiment, workers, files, checkpoint)
            _export(built, result, directory.path, settings.backbone_path)
            files.finish(
                _identity(settings, built, workers.count), built.task.higher_is_better, flatten(settings.resolved)
            )
    console.print(f"{settings.method.label}: {directory.path}", highlight=False, soft_wrap=True)
    return directory.path


def _keep_partition(partition: Partition, path: Path, resuming: bool) -> None:
    """Saves which client holds which rows; a run that goes on must hold the same."""
    if resuming and Partition.load(path).digest() != partition.digest():
        raise ConfigurationError(f"{path} differs from what data and settings give now; were the data changed?")
    partition.save(path)


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
        "seed": settings.run.seed,
        "rounds": settings.run.rounds,
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
