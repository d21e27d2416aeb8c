"""A sweep whose runs Optuna chooses: its samplers and its storage; the runs, and what they are judged by, are ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from fedsim.errors import ConfigurationError, unknown_name
from launch.configuration import read_settings
from launch.sweeps.definition import Sweep, yaml_flow
from launch.sweeps.plan import PlannedRun, plan_runs, shared_arguments
from launch.sweeps.runner import Outcome, run_all
from launch.sweeps.trials import holding_out, read_validated

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

STORAGE = "optuna.db"
FAILURE = "failure"
"""The attribute of a trial whose runs came to nothing; one that was stopped has none."""
NO_VALUE = "its metric has no finite value"
DEFAULT_SAMPLER = "TPESampler"
BOUNDS = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class OptunaSearch:
    """A search by Optuna.

    Attributes:
        sweep: with a space.
        common: arguments of `fedsim run` for all runs, with what they hold out.
        out: where runs and Optuna's storage go.
        trials: how many, in all.
        jobs: how many runs at a time, and how many trials are chosen at once.
        sampler: one of Optuna's, by name.
    """

    sweep: Sweep
    common: Sequence[str]
    out: Path
    trials: int
    jobs: int
    sampler: str

    def runs(self, point: Mapping[str, Any]) -> list[PlannedRun]:
        """Lays out the runs of a trial, one a seed."""
        return plan_runs(replace(self.sweep, runs=[point], space={}), self.common, self.out)


def prepare(sweep: Sweep, common: Sequence[str], out: Path, trials: int, jobs: int, sampler: str) -> OptunaSearch:
    """Checks a search; a mistake in the last choice of its space should show before the first run.

    Raises:
        ConfigurationError: Optuna is not there, or the space is none.
    """
    _optuna()
    settings = read_settings(shared_arguments(sweep, common))
    search = OptunaSearch(sweep, [*common, *holding_out(settings)], out, trials, jobs, sampler)
    _sampler(sampler, 0)
    ends = {key: _ends(distribution) for key, distribution in _distributions(sweep.space).items()}
    for key, values in ends.items():
        for value in values:
            search.runs({**{other: some[0] for other, some in ends.items()}, key: value})
    return search


def conduct_study(wanted: OptunaSearch, console: Console, debug: bool = False) -> list[Outcome]:
    """Has Optuna choose, and tells it the main metric on held-out examples after the last round, mean over seeds.

    It is told what is to be maximised: a loss, therefore, with its sign turned. A trial that was under way when the
    search was stopped is chosen again, so that its runs go on. The n-th trial is drawn by seed n: a search that was
    stopped chooses as one that was not.

    Returns:
        How every run of every trial ended.

    Raises:
        ConfigurationError: the storage holds trials of another space, or of other settings.
    """
    study = _study(wanted)
    planned = {trial.number: wanted.runs(trial.params) for trial in _done(study)}
    for trial in _done(study):
        if trial.values and not all(run.finished for run in planned[trial.number]):
            raise ConfigurationError(f"{wanted.out / STORAGE} holds trials of other settings; give another --out")
    distributions = _distributions(wanted.sweep.space)
    ended: dict[Path, Outcome] = {}
    while (done := len(_done(study))) < wanted.trials:
        trials = []
        for number in range(done, min(done + wanted.jobs, wanted.trials)):
            study.sampler = _sampler(wanted.sampler, number)
            trials.append(_ask(study, distributions, wanted.out))
            planned[trials[-1].number] = wanted.runs(trials[-1].params)
        once = {run.folder: run for trial in trials for run in planned[trial.number]}  # two trials may be alike
        ended |= {o.run.folder: o for o in run_all(list(once.values()), wanted.jobs, console, debug)}
        for trial in trials:
            _tell(study, trial, [ended[run.folder] for run in planned[trial.number]])
    best = max((trial for trial in study.trials if trial.values), key=lambda trial: trial.values[0], default=None)
    if best is not None:
        attributes = ", ".join(f"{name} {value:.4g}" for name, value in best.user_attrs.items())
        console.print(
            f"best of {len(_done(study))} trials: {best.params}; {attributes}", highlight=False, soft_wrap=True
        )
    every = {
        run.folder: _outcome(run, trial.user_attrs.get(FAILURE, ""), ended)
        for trial in _done(study)
        for run in planned[trial.number]
    }
    return list(every.values())


def _outcome(run: PlannedRun, failure: str, ended: Mapping[Path, Outcome]) -> Outcome:
    """How a run ended whose trial may have failed for another seed; an earlier command's is known by its directory."""
    outcome = ended.get(run.folder) or Outcome(run, "" if run.finished else failure)
    if failure and not outcome.failure and np.isnan(read_validated(run.folder).validation):
        return Outcome(run, NO_VALUE)
    return outcome


def _ask(study: "Study", distributions: "dict[str, BaseDistribution]", out: Path) -> "Trial":
    try:
        return study.ask(distributions)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{out / STORAGE} is of another space ({reason}); give another --out") from error


def _tell(study: "Study", trial: "Trial", outcomes: Sequence[Outcome]) -> None:
    """Tells Optuna what a trial came to."""
    from optuna.trial import TrialState

    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if failures:
        trial.set_user_attr(FAILURE, failures[0])
        study.tell(trial, state=TrialState.FAIL)
        return
    found = [read_validated(outcome.run.folder) for outcome in outcomes]
    validation = float(np.mean([one.validation for one in found]))
    trial.set_user_attr("validation", validation)
    trial.set_user_attr("test", float(np.mean([one.test for one in found])))
    trial.set_user_attr("upload_bytes", sum(one.upload_bytes for one in found))
    worth = validation if found[0].higher_is_better else -validation
    if np.isnan(worth):
        trial.set_user_attr(FAILURE, NO_VALUE)
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, worth)


def _study(wanted: OptunaSearch) -> "Study":
    """Opens the storage; what was under way when it was left is queued again."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted.out.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(wanted.out / STORAGE).resolve()}"
    study: Study = optuna.create_study(storage=storage, study_name="fedsim", direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _done(study: "Study") -> list[Any]:
    """The trials that came to an end of their own."""
    return [trial for trial in study.trials if trial.values or FAILURE in trial.user_attrs]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigurationError(
            "--optuna needs Optuna, which is not installed; pip install -c constraints.txt -e '.[search]'"
        ) from error
    return optuna


def _sampler(name: str, seed: int) -> Any:
    """Makes one of Optuna's samplers that need nothing but a seed.

    Raises:
        ConfigurationError: there is none of that name, or what it needs is missing.
    """
    samplers = _optuna().samplers
    known = [other for other in samplers.__all__ if other.endswith("Sampler") and not other.startswith("Base")]
    if name not in known:
        raise unknown_name("sampler of Optuna", name, known)
    try:
        return getattr(samplers, name)(seed=seed)
    except (TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"--sampler {name} cannot be made of a seed alone ({reason}); give another") from error


def _distributions(space: Mapping[str, Any]) -> "dict[str, BaseDistribution]":
    """Reads a space.

    Raises:
        ConfigurationError: a key has neither a list of values nor bounds.
    """
    return {key: _distribution(key, given) for key, given in space.items()}


def _distribution(key: str, given: Any) -> "BaseDistribution":
    distributions = _optuna().distributions
    if isinstance(given, list) and given:
        plain = str | int | float | bool | None
        return distributions.CategoricalDistribution([v if isinstance(v, plain) else yaml_flow(v) for v in given])
    try:
        if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= BOUNDS:
            raise ValueError("neither")
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in given.items()}
        whole = all(isinstance(value, int) for value in numbers.values())
        kind = distributions.IntDistribution if whole else distributions.FloatDistribution
        return kind(**numbers)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"space: {key} is {given} ({error}); expected a list of values, or low and high, with log: true or a step"
        ) from error


def _ends(distribution: "BaseDistribution") -> Sequence[Any]:
    """What of a distribution is tried on the keys: every choice, or both ends."""
    choices: Sequence[Any] | None = getattr(distribution, "choices", None)
    return (distribution.low, distribution.high) if choices is None else choices
