"""What the runs of a sweep came to: a CSV with a row a run, and the report over all of them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsim.errors import ConfigurationError
from fedsim.reporting import write_atomically
from launch.report import read_arguments, write
from launch.sweeps.definition import yaml_flow
from launch.sweeps.runner import Outcome

TOTALS = ("upload_bytes", "download_bytes", "seconds")


def check_report(options: Mapping[str, Any], out: Path) -> None:
    """Refuses options that `fedsim report` does not take, and another folder, before anything runs.

    Raises:
        ConfigurationError: there are some.
    """
    elsewhere = read_arguments([*_as_options(options), "--", str(out)]).out
    if elsewhere is not None:
        raise ConfigurationError(
            f"report: out is {elsewhere}; leave it out, the report lies in the sweep's folder (--out is {out})"
        )


def conclude(outcomes: Sequence[Outcome], options: Mapping[str, Any], out: Path, console: Console) -> int:
    """Writes sweep.csv and the report, and tells what failed; also where without those runs there is no report.

    Args:
        outcomes: of all runs.
        options: of the report.
        out: the folder to write to.
        console: where the table is printed.

    Returns:
        The exit status: 1 where a run failed.

    Raises:
        ConfigurationError: no run failed, and the report cannot be what was asked for.
    """
    write_csv(outcomes, out)
    folders = [outcome.run.folder for outcome in outcomes if not outcome.failure]
    if folders:  # one that failed is named in the report, too, where it left a directory
        begun = [o.run.folder for o in outcomes if o.failure and (o.run.folder / "config.yaml").exists()]
        arguments = [*_as_options(options), f"--out={out}", "--", *map(str, [*folders, *begun])]
        try:
            write(read_arguments(arguments), console)
        except ConfigurationError as error:
            if len(folders) == len(outcomes):
                raise
            said = " ".join(str(error).split())
            console.print(f"no report: {said}", markup=False, highlight=False, soft_wrap=True)
    return tell_failures(outcomes, console, "; the same command tries them again")


def write_csv(outcomes: Sequence[Outcome], out: Path) -> None:
    """Writes sweep.csv."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "sweep.csv", _csv(outcomes))


def tell_failures(outcomes: Sequence[Outcome], console: Console, what_to_do: str = "") -> int:
    """Tells what failed.

    Returns:
        The exit status: 1 where a run failed.
    """
    failed = [outcome for outcome in outcomes if outcome.failure]
    for outcome in failed:
        console.print(f"failed: {outcome.run.folder}: {outcome.failure}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} of {len(outcomes)} runs failed{what_to_do}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _as_options(options: Mapping[str, Any]) -> list[str]:
    """Spells options as the command line of `fedsim report` does."""
    given: list[str] = []
    for name, value in options.items():
        if value is True:
            given.append(f"--{name}")
        elif isinstance(value, list):
            given += [f"--{name}", *map(str, value)]
        elif value is not False and value is not None:
            given.append(f"--{name}={value}")
    return given


def _csv(outcomes: Sequence[Outcome]) -> str:
    """A row a run: where it is, what it differs in, how it ended and what it reached."""
    changed = list(dict.fromkeys(key for outcome in outcomes for key in outcome.run.changes))
    rows = [{**_identity(outcome, changed), **_reached(outcome)} for outcome in outcomes]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _identity(outcome: Outcome, changed: Sequence[str]) -> dict[str, Any]:
    changes = outcome.run.changes
    values = {key: value if isinstance(value := changes.get(key, ""), str) else yaml_flow(value) for key in changed}
    return {
        "run": outcome.run.folder.name,
        "settings": outcome.run.identity,
        **values,
        "seed": outcome.run.seed,
        "failure": outcome.failure,
    }


def _reached(outcome: Outcome) -> dict[str, Any]:
    """Final and best of the main metrics, and totals, from its summary."""
    if outcome.failure:
        return {}
    summary = json.loads((outcome.run.folder / "summary.json").read_text(encoding="utf-8"))
    metrics = {f"{when}/{name}": value for when in ("final", "best") for name, value in summary[when].items()}
    return {**metrics, **{name: summary[name] for name in TOTALS}}
