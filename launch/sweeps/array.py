"""A sweep as a SLURM array: a task a run, whose keys stand in a file that the batch script reads."""

import hashlib
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedsim.reporting import write_atomically
from launch.submit import Submission, plan
from launch.sweeps.plan import PlannedRun

TASKS = ".array"
"""The folder of these files, in the sweep's own."""


def plan_array(options: Namespace, runs: Sequence[PlannedRun], out: Path) -> tuple[Submission, dict[Path, str]]:
    """Lays out runs as an array, task i running the i-th of them. Nothing is written.

    Args:
        options: SLURM's, as `fedsim submit` takes them; jobs bounds how many tasks run at a time.
        runs: those that are not finished.
        out: the sweep's folder.

    Returns:
        What sbatch is called with, and each task's file: the arguments of `fedsim run`, one a line. Their folder is
        named by what they hold, as an earlier array may still wait for its own.

    Raises:
        ConfigurationError: more workers than GPUs were asked for.
    """
    options.array = f"0-{len(runs) - 1}{f'%{options.jobs}' if options.jobs else ''}"
    made = plan(options, runs[0].read(), [])
    texts = ["".join(f"{argument}\n" for argument in run.all_arguments) for run in runs]
    folder = out.resolve() / TASKS / hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
    files = {folder / str(number): text for number, text in enumerate(texts)}
    return replace(made, variables={**made.variables, "FEDSIM_TASKS": str(folder)}), files


def write_tasks(files: dict[Path, str]) -> None:
    """Writes the files of `plan_array`."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
