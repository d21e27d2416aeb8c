"""`fedsim sweep`: a grid, a list, seeds, over any key; what is finished stays, and one table at the end."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fedsim.errors import ConfigurationError
from fedsim.options import require
from launch.arguments import Arguments, refuse_misplaced, split_keys
from launch.environment import refuse_workers
from launch.search import run_search
from launch.submit import add_resources, check_resources, submit
from launch.sweeps.array import plan_array, write_tasks
from launch.sweeps.definition import Sweep, parse_grid, read_sweep
from launch.sweeps.plan import PlannedRun, plan_runs, shown
from launch.sweeps.results import check_report, conclude, tell_failures, write_csv
from launch.sweeps.runner import run_all

_DESCRIPTION = (
    "Runs a grid, a list, seeds, over any key. What stands behind -- goes to every run (fedsim run --help), and all is "
    "checked before anything starts. The same command again keeps what is finished and goes on with the rest."
)


def main(argv: Sequence[str]) -> int:
    """Runs, submits or shows a sweep."""
    refuse_workers("sweep")
    own, common = split_keys(argv)
    options = read_options(own)
    refuse_misplaced(options, common, "sweep")
    sweep = _sweep(options)
    out = options.out or Path("runs") / (Path(options.config).stem if options.config else "sweep")
    check_report(sweep.report, out)
    if sweep.space or options.optuna:
        return _choose(options, sweep, common, out)
    if sweep.search:
        if options.slurm:
            raise ConfigurationError("--slurm is given, but a search decides as it goes and is no array; leave it out")
        return run_search(sweep, sweep.search, common, out, options.jobs or 1, options.dry_run, options.debug)
    runs = plan_runs(sweep, common, out)
    left = [run for run in runs if not run.finished]
    if options.slurm:
        return _hand_over(options, runs, left, out)
    if options.dry_run:
        _show(runs, left)
    else:
        console = Console()
        console.print(f"{_count(len(runs))}, {len(runs) - len(left)} finished", highlight=False)
        return conclude(run_all(runs, options.jobs or 1, console, options.debug), sweep.report, out, console)
    return 0


def read_options(argv: Sequence[str]) -> Namespace:
    """Reads what stands before the runs' keys.

    Raises:
        ConfigurationError: it is no sweep.
    """
    parser = Arguments("sweep", _DESCRIPTION)
    parser.usage = "fedsim sweep [--config FILE] [--grid KEY=V,V ...] [--seeds 0 1 2] [...] -- [--KEY VALUE ...]"
    add = parser.add_argument
    add("--config", metavar="FILE", help="a sweep, or a search, in YAML (docs/sweeps.md)")
    add(
        "--grid",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=V,V",
        help="values of a key, crossed with all others",
    )
    add("--seeds", type=int, nargs="+", help="a run each of everything")
    add("--out", type=Path, help="where the runs go (default runs/sweep, or by the file's name)")
    add("--jobs", type=int, help="runs at a time (default 1; with --slurm, as many as the cluster starts)")
    add("--optuna", type=int, metavar="TRIALS", help="Optuna chooses so many from the file's space (docs/sweeps.md)")
    add("--sampler", help="one of Optuna's, with --optuna (default TPESampler)")
    add("--dry_run", action="store_true", help="show the runs and their number, and start nothing")
    add("--slurm", action="store_true", help="hand what is not finished to SLURM, as an array with a task a run")
    group = parser.add_argument_group("with --slurm, for each run")
    add_resources(group)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigurationError(
            f"{unknown[0]} is no option of fedsim sweep (fedsim sweep --help); a key of all runs stands behind --, as "
            "in fedsim sweep --grid method.lora_rank=1,4 -- --rounds 20"
        )
    require("--jobs", options.jobs, options.jobs is None or options.jobs >= 1, "1 or more")
    require("--optuna", options.optuna, options.optuna is None or options.optuna >= 1, "1 or more")
    if options.sampler is not None and options.optuna is None:
        raise ConfigurationError("--sampler is given, which is for --optuna; leave it out")
    check_resources(options)
    for action in group._group_actions:
        if not options.slurm and getattr(options, action.dest) != action.default:
            raise ConfigurationError(f"{action.option_strings[-1]} is given, which is for --slurm; leave it out")
    return options


def _sweep(options: Namespace) -> Sweep:
    """The sweep of the file and of the command line, which wins."""
    if not (options.config or options.grid or options.seeds):
        raise ConfigurationError("a sweep of nothing; give --config FILE, --grid KEY=VALUE,VALUE or --seeds 0 1 2")
    sweep = read_sweep(options.config) if options.config else Sweep()
    grid = {**sweep.grid, **dict(parse_grid(text) for text in options.grid)}
    return replace(sweep, grid=grid, seeds=options.seeds or sweep.seeds)


def _show(runs: Sequence[PlannedRun], left: Sequence[PlannedRun]) -> None:
    print(f"{shown(runs)}{_count(len(runs))}, {len(runs) - len(left)} finished")


def _choose(options: Namespace, sweep: Sweep, common: Sequence[str], out: Path) -> int:
    """Has Optuna choose the runs."""
    if not (sweep.space and options.optuna) or options.slurm or options.dry_run:
        raise ConfigurationError(
            "--optuna TRIALS and space: in the sweep's file go together, without --slurm and --dry_run (docs/sweeps.md)"
        )
    from launch.sweeps.optuna_study import DEFAULT_SAMPLER, conduct_study, prepare

    sampler = options.sampler or DEFAULT_SAMPLER
    wanted = prepare(sweep, common, out, options.optuna, options.jobs or 1, sampler)
    console = Console()
    outcomes = conduct_study(wanted, console, options.debug)
    write_csv(outcomes, out)
    return tell_failures(outcomes, console)


def _hand_over(options: Namespace, runs: Sequence[PlannedRun], left: Sequence[PlannedRun], out: Path) -> int:
    """Submits what is not finished."""
    if not left:
        print("all runs are finished; without --slurm, the same command makes their table")
        return 0
    submission, files = plan_array(options, left, out)
    if options.dry_run:
        _show(runs, left)
        print(submission)
        return 0
    write_tasks(files)
    job = submit(submission)
    print(f"job {job}: {_count(len(left))} below {out}")
    print(f"state:  squeue --job={job}\ncancel: scancel {job}")
    print("when it is over, the same command without --slurm makes the table, and runs what is missing")
    return 0


def _count(runs: int) -> str:
    return f"{runs} run{'' if runs == 1 else 's'}"
