"""`fedsim search`: FLASC-Search over rank and density, its cost counted, beside grid searches on request."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from fedsim.errors import ConfigurationError, TrainingError
from fedsim.options import require
from launch.arguments import Arguments, refuse_misplaced, split_keys
from launch.configuration import Settings, read_settings
from launch.environment import refuse_workers
from launch.reports.canvas import render
from launch.reports.files import write_files
from launch.sweeps.definition import Sweep, read_sweep
from launch.sweeps.flasc_search import Standing, conduct, flasc_search, halve, reachable, rungs
from launch.sweeps.plan import shared_arguments, shown
from launch.sweeps.search_results import SEARCH, Step, csv_text, describe, draw_search, saved_bytes, steps_of
from launch.sweeps.search_space import GRIDS, Configuration, SearchSpace
from launch.sweeps.trials import Measure, Trials, holding_out, plan_trials

_DESCRIPTION = (
    "Tunes FLASC's density on the two lowest ranks, then its rank (FLASC-Search). What is chosen by are examples that "
    "nobody trains on (evaluation.held_out; a fifth where the keys hold nothing out); the test split is reported. What "
    "stands behind -- goes to every run (fedsim run --help). The same command again goes on."
)


def main(argv: Sequence[str]) -> int:
    """Searches, and tells what was chosen and what that cost."""
    refuse_workers("search")
    own, common = split_keys(argv)
    options = read_options(own)
    refuse_misplaced(options, common, "search")
    sweep = read_sweep(options.config) if options.config else Sweep()
    if options.config and not sweep.search:
        raise ConfigurationError(f"--config {options.config} has no search: in it; give it to fedsim sweep")
    given = {entry.name: getattr(options, entry.name) for entry in fields(SearchSpace)}
    wins = {name: value for name, value in given.items() if value is not None}
    space = replace(sweep.search or SearchSpace(), **wins)
    out = options.out or Path("runs") / (Path(options.config).stem if options.config else "search")
    sweep = replace(sweep, seeds=options.seeds or sweep.seeds)
    return run_search(sweep, space, common, out, options.jobs, options.dry_run, options.debug)


def run_search(
    sweep: Sweep, space: SearchSpace, common: Sequence[str], out: Path, jobs: int, dry_run: bool, debug: bool
) -> int:
    """Runs FLASC-Search, and the grids beside it; what is finished stays.

    Args:
        sweep: with base, keys for all, and seeds.
        space: what is searched.
        common: arguments of `fedsim run` for all runs; they win.
        out: where the runs and the table go.
        jobs: how many runs at a time.
        dry_run: show what may come to run, and start nothing.
        debug: show the traceback of a run that fails.

    Returns:
        The exit status: 1 where a run failed.

    Raises:
        ConfigurationError: it cannot be searched so, or a directory holds something else.
        TrainingError: nothing has a result.
        RunStopped: a signal stopped a run.
    """
    settings = read_settings(shared_arguments(sweep, common))
    if space.halving and settings.privacy.epsilon is not None and settings.privacy.noise_multiplier is None:
        raise ConfigurationError(
            f"halving is {space.halving} with privacy.epsilon, whose noise is found for the rounds of a run: runs that "
            "stop early would have less; give privacy.noise_multiplier"
        )
    grids = space.grids()
    candidates = [*reachable(space.ranks, space.densities), *(one for found in grids.values() for one in found)]
    runs = plan_trials(candidates, sweep, [*common, *holding_out(settings)], out)
    if dry_run:
        every = [run for found in runs.values() for run in found]
        print(f"{shown(every)}{len(every)} runs at most, {sum(run.finished for run in every)} finished")
        return 0
    console = Console()
    trials = Trials(runs, settings.run.rounds, jobs, console, debug)

    attempt = partial(_attempt, trials, settings, space.halving)
    measures: dict[Configuration, Measure] = {}
    tried = conduct(flasc_search(space.ranks, space.densities), partial(attempt, measures))
    searches = {SEARCH: steps_of(tried, measures)}
    for name, configurations in grids.items():
        measures = {}  # a grid pays for what the search has run, too
        found = attempt(measures, configurations)
        rising = sorted(configurations, key=lambda one: measures[one].upload_bytes)  # from cheap to expensive
        searches[name] = steps_of({one: found[one] for one in rising}, measures)
    seeds = [run.seed for run in next(iter(runs.values()))]
    return _conclude(searches, trials, seeds, settings.run.rounds, out, console)


def _attempt(
    trials: Trials,
    settings: Settings,
    keep: int | None,
    measures: dict[Configuration, Measure],
    batch: Sequence[Configuration],
) -> dict[Configuration, Standing]:
    """Runs a batch to its end, or, with `keep`, the better part of it; what each came to goes into `measures`."""

    def advance(left: Sequence[Configuration], rounds: int) -> Mapping[Configuration, float]:
        found = trials.measure(left, rounds)
        for one, measure in found.items():
            if (
                one not in measures or measures[one].rounds < measure.rounds
            ):  # it may have come further in an earlier batch
                measures[one] = measure
        return {one: trials.worth(measure) for one, measure in found.items()}

    rounds = settings.run.rounds
    stops = rungs(len(batch), rounds, keep, settings.run.evaluate_every_rounds) if keep else [rounds]
    return halve(batch, stops, keep or 1, advance)


def _conclude(
    searches: Mapping[str, Sequence[Step]],
    trials: Trials,
    seeds: Sequence[int],
    rounds: int,
    out: Path,
    console: Console,
) -> int:
    """Writes search.csv and the figure, and tells the rest.

    Raises:
        TrainingError: nothing has a result.
    """
    for folder, failure in trials.failures.items():
        console.print(f"failed: {folder}: {failure}", markup=False, highlight=False, soft_wrap=True)
    if not trials.metric:
        raise TrainingError(f"every run of the search failed, the last one so: {failure}")
    figure = draw_search(searches, trials.metric)
    contents = {
        "search.csv": csv_text(searches, seeds).encode(),
        "search.png": render(figure, "png"),
        "search.svg": render(figure, "svg"),
    }
    write_files(out, contents)
    for name, steps in searches.items():
        console.print(describe(name, steps, trials.metric), markup=False, highlight=False, soft_wrap=True)
        if saved := saved_bytes(steps, rounds):
            console.print(f"  stopping the hopeless saved about {saved / 1e6:.4g} MB", highlight=False)
    console.print(f"written to {out}: {', '.join(contents)}", markup=False, highlight=False, soft_wrap=True)
    return 1 if trials.failures else 0


def read_options(argv: Sequence[str]) -> Namespace:
    """Reads what stands before the runs' keys; what is not given is None, and the file's or the default.

    Raises:
        ConfigurationError: it is no search.
    """
    parser = Arguments("search", _DESCRIPTION)
    parser.usage = "fedsim search [--config FILE] [--ranks 1 2 4 8] [--densities 0.25 0.5 1] [...] -- [--KEY VALUE ...]"
    add = parser.add_argument
    default = SearchSpace()
    add("--config", metavar="FILE", help="a search in YAML: base, keys, seeds, search (docs/sweeps.md); options win")
    add("--ranks", type=int, nargs="+", help=f"LoRA ranks (default {_spaced(default.ranks)})")
    add("--densities", type=float, nargs="+", help=f"of FLASC (default {_spaced(default.densities)})")
    add("--seeds", type=int, nargs="+", help="a run each of every configuration, which then counts by its mean")
    add("--against", nargs="+", choices=GRIDS, help="grid searches to run beside it, of the same ranks")
    kept = f"kept at each pruning (default {_spaced(default.lth_densities)}, the paper's)"
    add("--lth_densities", type=float, nargs="+", help=kept)
    add("--halving", type=int, metavar="N", help="of those tried at once, one of N goes on (successive halving)")
    add("--out", type=Path, help="where the runs go (default runs/search, or by the file's name)")
    add("--jobs", type=int, default=1, help="runs at a time (default 1)")
    add("--dry_run", action="store_true", help="show what may come to run, and start nothing")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigurationError(
            f"{unknown[0]} is no option of fedsim search (fedsim search --help); a key of all runs stands behind --, "
            "as in fedsim search --ranks 1 2 4 -- --rounds 20"
        )
    require("--jobs", options.jobs, options.jobs >= 1, "1 or more")
    return options


def _spaced(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
