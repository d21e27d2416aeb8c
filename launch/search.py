"""`fedsim search`: FLASC-Search over rank and density, its cost counted, beside grid searches on request."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from fedsim.errors import ConfigurationError, TrainingError
from fedsim.options import require
from launch.arguments import Arguments
from launch.configuration import Settings, read_settings
from launch.reports.canvas import render
from launch.reports.files import write_files
from launch.sweeps.flasc_search import (
    GRIDS,
    Configuration,
    Standing,
    check_space,
    conduct,
    flasc_search,
    grid,
    halve,
    reachable,
    rungs,
)
from launch.sweeps.search_results import SEARCH, Step, csv_text, describe, draw_search, saved_bytes, steps_of
from launch.sweeps.trials import Measure, Trials, plan_trials

_DESCRIPTION = (
    "Tunes FLASC's density on the two lowest ranks, then its rank (FLASC-Search). What is chosen by are examples that "
    "nobody trains on (evaluation.held_out; a fifth where the keys hold nothing out); the test split is reported. What "
    "stands behind -- goes to every run (fedsim run --help). The same command again goes on."
)


def main(argv: Sequence[str]) -> int:
    """Searches, and tells what was chosen and what that cost."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    options, common = read_options(argv[:at]), list(argv[at + 1 :])
    settings = read_settings(common)
    grids = {name: grid(name, options.ranks, options.densities, options.lth_densities) for name in options.against}
    candidates = [*reachable(options.ranks, options.densities), *(one for found in grids.values() for one in found)]
    runs = plan_trials(candidates, common, settings, options.seeds, options.out)
    console = Console()
    trials = Trials(runs, settings.run.rounds, options.jobs, console, options.debug)

    attempt = partial(_attempt, trials, settings, options.halving)
    measures: dict[Configuration, Measure] = {}
    tried = conduct(flasc_search(options.ranks, options.densities), partial(attempt, measures))
    searches = {SEARCH: steps_of(tried, measures)}
    for name, configurations in grids.items():
        measures = {}  # a grid pays for what the search has run, too
        found = attempt(measures, configurations)
        rising = sorted(configurations, key=lambda one: measures[one].upload_bytes)  # from cheap to expensive
        searches[name] = steps_of({one: found[one] for one in rising}, measures)
    seeds = [run.seed for run in next(iter(runs.values()))]
    return _conclude(searches, trials, seeds, settings.run.rounds, options.out, console)


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
    """Reads what stands before the runs' keys.

    Raises:
        ConfigurationError: it is no search.
    """
    parser = Arguments("search", _DESCRIPTION)
    parser.usage = "fedsim search [--ranks 1 2 4 8] [--densities 0.125 0.25 0.5 1] [...] -- [--KEY VALUE ...]"
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="LoRA ranks (default 1 2 4 8 16 32)")
    add("--densities", type=float, nargs="+", default=[0.125, 0.25, 0.5, 1.0], help="default 0.125 0.25 0.5 1")
    add("--seeds", type=int, nargs="+", help="a run each of every configuration, which then counts by its mean")
    add("--against", nargs="+", default=[], choices=GRIDS, help="grid searches to run beside it, of the same ranks")
    kept = [0.97, 0.98, 0.99]
    add(
        "--lth_densities",
        type=float,
        nargs="+",
        default=kept,
        help=f"kept at each pruning (default {kept}, the paper's)",
    )
    add("--halving", type=int, metavar="N", help="of those tried at once, one of N goes on (successive halving)")
    add("--out", type=Path, default=Path("runs/search"), help="where the runs go (default runs/search)")
    add("--jobs", type=int, default=1, help="runs at a time (default 1)")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigurationError(
            f"{unknown[0]} is no option of fedsim search (fedsim search --help); a key of all runs stands behind --, "
            "as in fedsim search --ranks 1 2 4 -- --rounds 20"
        )
    options.ranks, options.densities = sorted({*options.ranks}), sorted({*options.densities})
    check_space(options.ranks, options.densities, options.lth_densities)
    require("--jobs", options.jobs, options.jobs >= 1, "1 or more")
    require("--halving", options.halving, options.halving is None or options.halving >= 2, "2 or more")
    return options
