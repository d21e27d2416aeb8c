"""`fedsim submit`: hands a run to SLURM, by sbatch and the batch scripts in `launch/slurm`.

submitit would submit, too, but by pickling a function that the job loads, and pickling it anew to queue the job again.
Nothing that this project reads executes on load, and a run goes on from its own checkpoint; so all that is left is to
call sbatch.
"""

import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace, _ArgumentGroup
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import ConfigurationError
from fedsim.options import require
from launch.arguments import Arguments, refuse_misplaced, split_keys
from launch.configuration import Settings, read_settings
from launch.environment import with_variables

SCRIPTS = Path(__file__).resolve().parent / "slurm"
TASK = "%a"
"""Stands for the number of an array's task in the keys of its run, as in sbatch's names of files."""

_ARRAY = re.compile(r"(\d+)(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")
_DESCRIPTION = (
    "Hands a run to SLURM. What stands behind -- goes to `fedsim run` (fedsim run --help), and is checked before "
    "anything is queued. Before its time limit, or preempted, the run saves its round; the job is queued again and "
    "goes on."
)


@dataclass(frozen=True)
class Submission:
    """What sbatch is called with.

    Attributes:
        command: sbatch and its arguments.
        variables: what the batch scripts read from the environment.
    """

    command: tuple[str, ...]
    variables: dict[str, str]

    def __str__(self) -> str:
        return shlex.join([*(f"{name}={value}" for name, value in self.variables.items()), *self.command])


def main(argv: Sequence[str]) -> int:
    """Checks a run, submits it, and says where it goes, how to follow it and how to end it."""
    own, keys = split_keys(argv)
    options = read_options(own)
    refuse_misplaced(options, keys, "submit")
    settings = _check_keys(keys, options.array)
    submission = plan(options, settings, keys)
    if options.dry_run:
        print(submission)
        return 0
    job = submit(submission)
    name = f"{job}-{TASK}" if options.array else job
    print(f"job {job}: {_run_directory(keys) or f'runs/slurm-{name}'}")
    if options.array:
        print(f"{TASK} is the number of a task of the array {options.array}")
    if not any(option.startswith(("--output", "-o")) for option in options.sbatch):
        print(f"follow: tail -F slurm-{f'{job}_{TASK}' if options.array else job}.out")
    print(f"state:  squeue --job={job}\ncancel: scancel {job}")
    return 0


def plan(options: Namespace, settings: Settings, keys: Sequence[str]) -> Submission:
    """Makes sbatch's arguments.

    Args:
        options: of `fedsim submit`.
        settings: of the run.
        keys: the same as they were given.

    Raises:
        ConfigurationError: more workers than GPUs were asked for.
    """
    workers = options.tasks_per_node or options.gpus_per_node or 1
    if options.gpus_per_node and workers > options.gpus_per_node and settings.accelerator != "cpu":
        raise ConfigurationError(
            f"--tasks_per_node is {workers} and --gpus_per_node {options.gpus_per_node}; expected a worker a GPU at "
            "most, or the run's --accelerator cpu"
        )
    cpus = options.cpus_per_task or settings.threads_per_worker
    tasks, cpus_per_task = (1, workers * cpus) if options.torchrun else (workers, cpus)
    asked = {
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cpus_per_task,
        "gpus-per-node": options.gpus_per_node,
        "partition": options.partition,
        "time": options.time,
        "array": options.array,
    }
    given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    script = SCRIPTS / ("fedsim_torchrun.sbatch" if options.torchrun else "fedsim.sbatch")
    variables = {"FEDSIM_SLURM": str(SCRIPTS), "PYTHON": sys.executable}
    if options.torchrun:
        variables["WORKERS"] = str(workers)
    return Submission(("sbatch", "--parsable", "--export=ALL", *given, *options.sbatch, str(script), *keys), variables)


def read_options(argv: Sequence[str]) -> Namespace:
    """Reads what stands before the run's keys."""
    options, unknown = _parser().parse_known_args(argv)
    if unknown:
        raise ConfigurationError(
            f"{unknown[0]} is no option of fedsim submit (fedsim submit --help); a key of the run stands behind --, as "
            "in fedsim submit --nodes 2 -- --rounds 200"
        )
    check_resources(options)
    array = options.array
    require("--array", array, array is None or bool(_ARRAY.fullmatch(array)), "numbers, as 0-4, 0-8:2 or 1,3,5%2")
    return options


def _parser() -> Arguments:
    """Makes the parser. SLURM's spelling of an option is known, too."""
    parser = Arguments("submit", _DESCRIPTION)
    parser.usage = "fedsim submit [--nodes N] [--tasks_per_node N] [...] -- [--config FILE] [--KEY VALUE ...]"
    add_resources(parser)
    add = parser.add_argument
    add("-a", "--array", help="a run each, as 0-4 or 1,3,5%%2; %%a is its number in the run's keys, as in --seed %%a")
    add("--dry_run", action="store_true", help="print the command, and submit nothing")
    return parser


def add_resources(parser: Arguments | _ArgumentGroup) -> None:
    """Adds what a run asks SLURM for."""
    add = parser.add_argument
    add("-N", "--nodes", type=int, default=1, help="how many nodes (default 1)")
    add("--tasks_per_node", "--ntasks-per-node", type=int, help="workers a node (default one a GPU, or 1)")
    add("--gpus_per_node", "--gpus-per-node", type=int, help="GPUs a node (default: none are asked for)")
    add("--cpus_per_task", "--cpus-per-task", type=int, help="CPUs a worker (default: the run's threads_per_worker)")
    add("-p", "--partition", help="of the cluster (default: the cluster's own)")
    add("-t", "--time", help="the limit, as 30 (minutes), 4:00:00 or 2-12 (days-hours)")
    add("--torchrun", action="store_true", help="start the workers by a torchrun a node, not by srun")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="any other, as in --sbatch=--account=lab")


def check_resources(options: Namespace) -> None:
    """Refuses what `add_resources` should not have been given.

    Raises:
        ConfigurationError: a number is below 1.
    """
    for name in ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task"):
        value = getattr(options, name)
        require(f"--{name}", value, value is None or value >= 1, "1 or more")


def _check_keys(keys: Sequence[str], array: str | None) -> Settings:
    """Reads the run's keys as the job will; of an array, those of its first task.

    Raises:
        ConfigurationError: they are no run, or the tasks of an array would be one and the same.
    """
    if array is None:
        return read_settings(keys)
    if not any(TASK in key for key in keys):
        raise ConfigurationError(
            f"--array is given, but its runs would all be the same; say {TASK} for the task's number: --seed {TASK}"
        )
    if TASK not in (_run_directory(keys) or TASK):
        raise ConfigurationError(f"--run_dir is one for all tasks of the array; put {TASK} in it, or leave it out")
    first = array.partition(",")[0].partition("-")[0].partition("%")[0]
    return read_settings([key.replace(TASK, first) for key in keys])


def _run_directory(keys: Sequence[str]) -> str | None:
    """Finds the run directory that was asked for, which the last one is."""
    found = None
    for at, key in enumerate(keys):
        name, equals, value = key.partition("=")
        if name == "--run_dir":
            found = value if equals else "".join(keys[at + 1 : at + 2])
    return found


def submit(submission: Submission) -> str:
    """Calls sbatch, and returns the job's number.

    Raises:
        ConfigurationError: there is no sbatch, or it refused.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise ConfigurationError("sbatch is not on the PATH; submit where SLURM is, or start workers with torchrun")
    done = subprocess.run(
        [program, *submission.command[1:]],
        env=with_variables(submission.variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigurationError(f"sbatch refused (its status is {done.returncode}): {done.stderr.strip()}")
    return done.stdout.strip().splitlines()[-1].partition(";")[0]
