"""One experiment, from its settings to its files."""

import importlib.metadata
import platform
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from rich.console import Console

import fedsim
from data_partitions.errors import DataError
from data_partitions.partition import Partition
from fedsim.adapters import export_adapter, export_backbone
from fedsim.checkpoint import Checkpoint
from fedsim.errors import ConfigurationError, RunStopped, WorkerLost
from fedsim.history import History
from fedsim.ledger import require_length
from fedsim.progress import Progress
from fedsim.reporting import RunFiles
from fedsim.restoring import require_restorable
from fedsim.simulation import Result, simulate
from fedsim.transport import Workers
from launch.build import Built, build
from launch.configuration import Settings, flatten
from launch.environment import global_rank, start_workers, stop_workers
from launch.private import promise, summary_of
from launch.run_directory import RunDirectory, earlier_settings
from launch.secret import agree_on_secret, require_secret
from launch.stopping import StopRequest


def run(settings: Settings, console: Console, stop: StopRequest | None = None) -> Path | None:
    """Runs one experiment.

    Args:
        settings: what was asked for.
        console: where the server worker shows its progress.
        stop: hears of signals from here on; one of its own where none is given.

    Returns:
        The run directory on the server worker, None on the others.

    Raises:
        ConfigurationError: settings, data, backbone or run directory do not fit; nothing was written.
        TrainingError: training diverged.
        RunStopped: a signal asked for it, and the run was saved.
        WorkerLost: another worker stopped.
    """
    with stop or StopRequest(settings.stop_within_seconds, global_rank() == 0) as stop:
        fabric, workers = start_workers(
            *(settings.accelerator, settings.precision, settings.threads_per_worker),
            timeout_seconds=settings.collective_timeout_seconds,
        )
        try:
            path = run_on(settings, fabric, workers, console, stop)
        except WorkerLost as error:
            if not stop.asked():
                raise
            if stop.long_ago():
                stop.leave_marker()
            # Or else it was the launcher's, who ends all workers where one failed: nobody waits to say so.
            raise RunStopped(f"stopped by {stop.by}, as another worker left; --resume auto goes on", stop.by) from error
    stop_workers()  # not after an error: others may be inside a collective, and the launcher ends them
    return path


def run_on(
    settings: Settings, fabric: Fabric, workers: Workers, console: Console, stop: StopRequest | None = None
) -> Path | None:
    """Runs one experiment on workers that have already found each other; otherwise as `run`.

    Args:
        settings: what was asked for.
        fabric: launched.
        workers: the processes of the run.
        console: where the server worker shows its progress.
        stop: hears of signals; None where nobody listens.
    """
    stop = stop or StopRequest(settings.stop_within_seconds, False)
    settings = _as_chosen_before(settings, workers)
    built = build(settings, fabric, workers)
    settings = settings.with_pack(built.pack).with_noise(built.noise_multiplier)
    directory = _agree(settings, built, workers)
    if directory is None:
        experiment = replace(built.experiment, secret=agree_on_secret(settings.privacy, None, workers))
        _require_end(simulate(experiment, workers, None, None, stop.asked), stop, workers)
        return None
    with directory:
        stop.folder = directory.path
        checkpoint = directory.checkpoint
        for note in (*directory.notes, *built.notes):
            console.print(note, soft_wrap=True)
        directory.begin(settings.resolved, {"partition": built.partition, "held_out": built.held_out})
        experiment = replace(built.experiment, secret=agree_on_secret(settings.privacy, directory.path, workers))
        history = History.read(checkpoint.meta["history"]) if checkpoint else History()
        done = checkpoint.round if checkpoint else 0
        progress = Progress(console, settings.method.label, experiment.run.rounds, done)
        with RunFiles(directory.path, history, done, progress) as files:
            result = _require_end(simulate(experiment, workers, files, checkpoint, stop.asked), stop, workers)
            _export(built, result, directory.path, settings.backbone_path)
            files.finish(
                _identity(settings, built, workers.count), built.task.higher_is_better, flatten(settings.resolved)
            )
        directory.done()
    if experiment.privacy is not None:
        for line in promise(experiment.privacy, experiment.run.rounds):
            console.print(f"spent, {line}", soft_wrap=True)
    console.print(f"{settings.method.label}: {directory.path}", highlight=False, soft_wrap=True)
    return directory.path


def _require_end(result: Result | None, stop: StopRequest, workers: Workers) -> Result:
    """Ends a run that was stopped on all workers together: who left first would have the launcher end the others."""
    if result is not None:
        return result
    heard = stop.by if workers.is_server else ""
    stop.by = stop.by or "another worker's signal"
    stop.leave_marker()
    by = workers.broadcast([heard.encode()] if workers.is_server else None)[0].decode()
    raise RunStopped(f"stopped by {by or stop.by}, and saved; --resume auto goes on", by)


def _as_chosen_before(settings: Settings, workers: Workers) -> Settings:
    """Takes the slots and the noise that a run to be resumed chose for itself: they are part of the bits."""
    if settings.resume != "auto":
        return settings
    earlier: dict[str, Any] = {}
    if workers.is_server:
        with suppress(ConfigurationError):  # `_agree` refuses what cannot be read, and tells all workers
            earlier = earlier_settings(settings.run_dir)
    chosen: dict[str, Any] = {
        key: earlier[key] for key in ("client.pack", "privacy.noise_multiplier") if key in earlier
    }
    return settings.as_chosen(workers.tell(chosen, {})[0])


def _agree(settings: Settings, built: Built, workers: Workers) -> RunDirectory | None:
    """Opens the run directory on the server worker; where that is refused, every worker raises the refusal."""
    directory: RunDirectory | None = None
    refusal: ConfigurationError | None = None
    if workers.is_server:
        name = f"{type(settings.method).__name__}-{type(settings.data).__name__}-s{settings.run.seed}"
        try:
            directory = RunDirectory.open(settings.run_dir, name, settings.resume == "auto", settings.resolved)
            if directory.checkpoint is not None:
                check_continuation(directory.path, directory.checkpoint, built)
            require_secret(settings.privacy, directory.path, directory.checkpoint is not None)
        except (ConfigurationError, DataError) as error:
            refusal = error if isinstance(error, ConfigurationError) else ConfigurationError(str(error))
            if directory is not None:
                directory.release()
    told = workers.broadcast([str(refusal or "").encode()] if workers.is_server else None)[0].decode()
    if told:
        raise refusal or ConfigurationError(told)
    return directory


def check_continuation(path: Path, checkpoint: Checkpoint, built: Built) -> None:
    """Refuses to go on from files that do not belong to what data and settings give now.

    Raises:
        ConfigurationError: partition, checkpoint or ledger are not of this run.
        DataError: the partition cannot be read.
    """
    if Partition.load(path / "partition.npz").digest() != built.partition.digest():
        raise ConfigurationError(f"{path / 'partition.npz'} is not what data and settings give; were the data changed?")
    try:
        history = require_restorable(checkpoint, built.experiment)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the checkpoint of round {checkpoint.round} in {path} is not of this run ({error}); resume with the "
            "backbone that made it, or take that checkpoint's folder away"
        ) from error
    require_length(path / "ledger.csv", history.ledger_position)


def _export(built: Built, result: Result, folder: Path, backbone_path: str) -> None:
    """Writes the main view as a PEFT folder, behind the backbone where that changed."""
    experiment = built.experiment
    experiment.parameters.load(result.vector)
    changed = experiment.backbone.changed or "backbone" in experiment.parameters.layout.segments()
    if changed:
        export_backbone(built.model, folder / "backbone")
        backbone_path = str(folder.resolve() / "backbone")
    export_adapter(built.model, folder / "adapter", backbone_path)
    if not changed:  # the run may have ended in an earlier stage before it went on
        shutil.rmtree(folder / "backbone", ignore_errors=True)


def _identity(settings: Settings, built: Built, workers: int) -> dict[str, Any]:
    """What summary.json says of the run itself."""
    libraries = ("torch", "lightning", "transformers", "peft", "numpy")
    mechanism, rounds = built.experiment.privacy, built.experiment.run.rounds
    return {
        **({} if mechanism is None else {"privacy": summary_of(settings.privacy, mechanism, rounds)}),
        "name": settings.method.label,
        "method": type(settings.method).__name__,
        "seed": settings.run.seed,
        "rounds": built.experiment.run.rounds,
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
