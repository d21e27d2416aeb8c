"""The runs behind a search: each configuration with every seed, as far as it is asked for, measured where it stands."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from launch.configuration import Settings
from launch.reports.results import read_run
from launch.run_directory import earlier_settings
from launch.sweeps.definition import Sweep, as_arguments
from launch.sweeps.plan import PlannedRun, plan_runs
from launch.sweeps.runner import run_all
from launch.sweeps.search_space import Configuration

HELD_OUT = {"evaluation.held_out": 0.2, "evaluation.clients": None}
"""What a search adds where the keys hold nothing out: a fifth of every client's examples, which nobody trains on. Those
of all clients together are the validation split."""


def holding_out(settings: Settings) -> list[str]:
    """Returns what is added to the arguments of runs that are compared on validation; nothing where they say it."""
    return [] if settings.evaluation.held_out else as_arguments(HELD_OUT)


@dataclass(frozen=True)
class Validated:
    """What a run came to at some round.

    Attributes:
        metric: the main one.
        higher_is_better: whether more of it is.
        validation: it, on the held-out examples; NaN where it has no finite value.
        test: it, on the test split.
        upload_bytes: uploaded until then.
    """

    metric: str
    higher_is_better: bool
    validation: float
    test: float
    upload_bytes: int


def read_validated(folder: Path, rounds: int | None = None) -> Validated:
    """Reads a finished run at its last evaluation, or its last until some round."""
    found = read_run(folder)
    metric = found.main_metrics[0]
    at = len(found.rounds) - 1 if rounds is None else int(np.searchsorted(found.rounds, rounds, "right")) - 1
    validation, test = (float(found.metrics[name][at]) for name in (f"held_out/{metric}", metric))
    return Validated(metric, found.higher_is_better[metric], validation, test, int(found.upload_bytes[at]))


@dataclass(frozen=True)
class Measure:
    """What a configuration came to at some round.

    Attributes:
        rounds: how far it was run.
        validation: the main metric on held-out examples, mean over seeds; NaN where a run failed.
        low, high: the smallest and the largest of the seeds.
        test: the main metric on the test split, likewise; nothing is chosen by it.
        upload_bytes: of all its seeds together.
    """

    rounds: int
    validation: float
    low: float
    high: float
    test: float
    upload_bytes: int


def plan_trials(
    configurations: Iterable[Configuration], sweep: Sweep, common: Sequence[str], out: Path
) -> dict[Configuration, list[PlannedRun]]:
    """Lays out the runs of everything that may be tried, and checks them.

    Args:
        configurations: what may be tried.
        sweep: with base, keys for all, and seeds.
        common: arguments of `fedsim run` for all, with what they hold out.
        out: where the runs go.

    Returns:
        By configuration a run a seed.

    Raises:
        ConfigurationError: keys that are no run's, or a directory that holds something else.
    """
    every = list(dict.fromkeys(configurations))
    planned = plan_runs(replace(sweep, search=None, runs=[one.keys for one in every]), common, out)
    return {one: [run for run in planned if run.changes == one.keys] for one in every}


class Trials:
    """Runs configurations, and remembers which failed.

    Args:
        runs: by configuration a run a seed.
        rounds: of a whole run.
        jobs: how many runs at a time.
        console: where progress is shown.
        debug: show the traceback of a run that fails.

    Attributes:
        metric: the main one; known once something was run, and so is which way it is better.
        higher_is_better: whether more of it is.
        failures: why runs failed, by directory.
    """

    def __init__(
        self, runs: dict[Configuration, list[PlannedRun]], rounds: int, jobs: int, console: Console, debug: bool = False
    ) -> None:
        self._runs = runs
        self._rounds = rounds
        self._jobs, self._console, self._debug = jobs, console, debug
        self.metric = ""
        self.higher_is_better = True
        self.failures: dict[Path, str] = {}

    def measure(self, configurations: Sequence[Configuration], rounds: int) -> dict[Configuration, Measure]:
        """Runs configurations to some round, where they are not there yet, and measures them at it."""
        wanted = [run for one in configurations for run in self._runs[one] if run.folder not in self.failures]
        left = [self._to(run, rounds) for run in wanted if not _is_at(run.folder, rounds)]
        for outcome in run_all(left, self._jobs, self._console, self._debug):
            if outcome.failure:
                self.failures[outcome.run.folder] = outcome.failure
        return {one: self._measured(self._runs[one], rounds) for one in configurations}

    def worth(self, measure: Measure) -> float:
        """What is chosen by: the validation metric, turned so that more is better."""
        if np.isnan(measure.validation):
            return float("-inf")
        return measure.validation if self.higher_is_better else -measure.validation

    def _to(self, run: PlannedRun, rounds: int) -> PlannedRun:
        """The run to some round, or as far as it was once to go: that it was, is known of a search that was stopped."""
        before = earlier_settings(run.folder).get("rounds", 0)
        target = max(rounds, min(before, self._rounds))
        return replace(run, arguments=(*run.arguments, f"--rounds={target}"), finished=False)

    def _measured(self, runs: Sequence[PlannedRun], rounds: int) -> Measure:
        validation, test, uploaded = [], [], 0
        for run in runs:
            if run.folder in self.failures:
                found = Validated(self.metric, self.higher_is_better, np.nan, np.nan, _uploaded(run.folder))
            else:
                found = read_validated(run.folder, rounds)
            self.metric, self.higher_is_better = found.metric, found.higher_is_better
            validation.append(found.validation)
            test.append(found.test)
            uploaded += found.upload_bytes
        mean, low, high = (float(of(validation)) for of in (np.mean, np.min, np.max))
        return Measure(rounds, mean, low, high, float(np.mean(test)), uploaded)


def _is_at(folder: Path, rounds: int) -> bool:
    """Whether a run of so many rounds or more is finished."""
    return (folder / "summary.json").exists() and earlier_settings(folder)["rounds"] >= rounds


def _uploaded(folder: Path) -> int:
    """What a run that failed had uploaded."""
    path = folder / "ledger.csv"
    if not path.exists():
        return 0
    with path.open(newline="", encoding="utf-8") as file:
        return sum(int(row["upload_bytes"] or 0) for row in csv.DictReader(file))
