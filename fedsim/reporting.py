"""The files of a run: metrics.csv, ledger.csv, TensorBoard's events, summary.json, and what the terminal shows.

Only the server worker has them. Rows of metrics.csv also stand in every checkpoint, so a resumed run neither doubles
nor misses one.
"""

import csv
import io
import json
import math
import os
import resource
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from lightning.fabric.loggers import TensorBoardLogger

from fedsim.disk import naming
from fedsim.history import History
from fedsim.ledger import Entry, Ledger, Totals
from fedsim.progress import Progress

_TOTALS = ("upload_bytes", "download_bytes", "upload_value_bytes", "download_value_bytes")


class RunFiles:
    """Writes the files of one run as it goes, while the context lasts.

    Args:
        folder: the run directory, which exists.
        history: empty, or what the checkpoint remembers.
        round: the round of that checkpoint, 0 for a new run.
        progress: what the terminal shows.
    """

    def __init__(self, folder: Path, history: History, round: int, progress: Progress) -> None:
        self.folder = folder
        self._history = history
        self._progress = progress
        self._started = time.perf_counter() - history.seconds
        self.ledger = Ledger(folder / "ledger.csv", history.ledger_position, Totals(**history.totals))
        # Two writers, as each purges by its own step when a run resumes: rounds, and bytes. Evaluation comes behind
        # the checkpoint, so the points of the checkpoint's own round are made again.
        self._by_round = _writer(folder, "", round)
        self._by_bytes = _writer(folder, "by_upload_bytes", self.ledger.totals.upload_bytes)

    def trained(self, entry: Entry, logged: Mapping[str, float]) -> None:
        """Enters one client's bytes, and what its module logged, to be averaged until the next evaluation."""
        self.ledger.add(entry)
        self._history.clients += entry.examples > 0
        for name, value in logged.items():
            # A module may log "accuracy" while it trains: that must not pass for the evaluation's.
            self._log(name if name.startswith("train/") else f"train/{name}", value, entry.examples)

    def round_done(
        self, round: int, measures: Mapping[str, float], notes: Sequence[str], server_seconds: float
    ) -> None:
        """Ends a round.

        Args:
            round: which.
            measures: what the method found out, to be averaged until the next evaluation, as server/NAME.
            notes: lines for the terminal.
            server_seconds: that aggregating and stepping took.
        """
        for name, value in measures.items():
            self._log(f"server/{name}", value, 1)
        for note in notes:
            self._progress.say(note)
        self._history.server_seconds += server_seconds
        self._history.left_out_clients += int(measures.get("left_out_clients", 0))
        self._progress.update(
            round, self._history.clients / max(self._seconds(), 1e-9), self.ledger.totals.upload_bytes
        )

    def evaluated(self, round: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of metrics.csv and the curves.

        Args:
            round: after so many server steps.
            metrics: of the main view by bare name, of others as view/metric.
        """
        rows = self._history.rows
        training = {name: total / max(1, examples) for name, (total, examples) in self._history.logged.items()}
        self._history.logged = {}
        found = {name: value if math.isfinite(value) else None for name, value in {**metrics, **training}.items()}
        totals = asdict(self.ledger.totals)
        rows.append({"round": round, **totals, **found, "seconds": round_to(self._seconds(), 3)})
        write_atomically(self.folder / "metrics.csv", _csv(rows))
        curves = {name: value for name, value in found.items() if value is not None}
        megabytes = {f"communication/{name.replace('_bytes', '_MB')}": value / 1e6 for name, value in totals.items()}
        by_round = {_tag(name): value for name, value in curves.items()}
        by_bytes = {_tag(name, "_by_upload_bytes"): value for name, value in curves.items()}
        with _drawing(self.folder):
            self._by_round.log_metrics({**by_round, **megabytes}, step=round)
            self._by_bytes.log_metrics(by_bytes, step=totals["upload_bytes"])
        self._progress.evaluated(round, metrics, totals["upload_bytes"])

    def history(self) -> dict[str, Any]:
        """Brings everything to disk and returns what a checkpoint must remember of it."""
        self._history.ledger_position = self.ledger.sync()
        self._history.totals = asdict(self.ledger.totals)
        self._history.seconds = self._seconds()
        for writer in (self._by_round, self._by_bytes):
            with _drawing(self.folder):
                writer.experiment.flush()
        return asdict(self._history)

    def finish(
        self, identity: Mapping[str, Any], higher_is_better: Mapping[str, bool], hyperparameters: Mapping[str, Any]
    ) -> None:
        """Writes summary.json, which marks the run as finished, and the table of hyper-parameters.

        Args:
            identity: what the run is: name, method, seed, rounds, workers, versions, ...
            higher_is_better: of the main view's metrics.
            hyperparameters: the resolved configuration, flat.
        """
        rows = self._history.rows
        final = {name: rows[-1][name] for name in higher_is_better}
        best = {
            name: (max if higher else min)((row[name] for row in rows if row.get(name) is not None), default=None)
            for name, higher in higher_is_better.items()
        }
        seconds = self._seconds()
        summary = {
            **identity,
            "final": final,
            "best": best,
            "higher_is_better": dict(higher_is_better),
            **asdict(self.ledger.totals),
            "seconds": round_to(seconds, 3),
            "clients_per_second": round_to(self._history.clients / max(seconds, 1e-9), 3),
            "server_seconds": round_to(self._history.server_seconds, 3),
            "left_out_clients": self._history.left_out_clients,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        finite = {f"final/{name}": value for name, value in final.items() if value is not None}
        with _drawing(self.folder):
            self._by_round.log_hyperparams(dict(hyperparameters), finite, step=rows[-1]["round"])
        self.history()
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def __enter__(self) -> Self:
        self._excepthook, threading.excepthook = threading.excepthook, self._in_thread
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # each is closed, whatever becomes of the others on a full disk
            stack.callback(self._forget_thread_errors)
            stack.callback(self._progress.close)
            stack.callback(self._by_bytes.finalize, "")
            stack.callback(self._by_round.finalize, "")
            stack.callback(self.ledger.close)

    def _in_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Shows what went wrong in a thread, but for a full disk: TensorBoard's raises that here at the next write."""
        if not issubclass(failed.exc_type, OSError):
            self._excepthook(failed)

    def _forget_thread_errors(self) -> None:
        threading.excepthook = self._excepthook

    def _log(self, name: str, value: float, weight: int) -> None:
        sums = self._history.logged.setdefault(name, [0.0, 0])
        sums[0] += value * weight
        sums[1] += weight

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by a new text, or leaves it as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path), temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def peak_memory_bytes() -> int:
    """Returns the most memory this process ever held: the GPU's where there is one, otherwise resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def round_to(value: float, digits: int) -> float:
    """Rounds, so that files stay readable."""
    return float(f"{value:.{digits}f}")


def _csv(rows: list[dict[str, Any]]) -> str:
    """Writes rows under the union of their columns, `seconds` last."""
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "seconds"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, "seconds"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _tag(metric: str, suffix: str = "") -> str:
    """Names a curve: accuracy is eval/accuracy, full/accuracy is eval_full/accuracy, train/loss stays as it is."""
    source, _, rest = metric.partition("/")
    if source in ("train", "server", "privacy"):
        return f"{source}{suffix}/{rest}"
    view, _, name = metric.rpartition("/")
    group = f"eval_{view}" if view else "eval"
    return f"{group}{suffix}/{name}"


def _writer(folder: Path, name: str, purge_step: int) -> TensorBoardLogger:
    _put_before_now(folder / name)
    return TensorBoardLogger(folder, name=name, version="", default_hp_metric=False, purge_step=purge_step)


@contextmanager
def _drawing(folder: Path) -> Iterator[None]:
    """Names the event files where they cannot be written: Lightning calls that a value that it does not support."""
    with naming(folder / "events.out.tfevents.*"):
        try:
            yield
        except ValueError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            raise


def _put_before_now(folder: Path) -> None:
    """Renames event files from a clock that was ahead: TensorBoard reads files in the order of the times they name."""
    now = int(time.time())
    for back, path in enumerate(sorted(folder.glob("events.out.tfevents.*"), reverse=True), start=1):
        *head, stamp, rest = path.name.split(".", 4)
        if stamp.isdecimal() and int(stamp) > now - back:
            path.rename(path.with_name(".".join([*head, f"{now - back:010d}", rest])))
