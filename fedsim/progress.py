"""What the terminal shows while a run goes on: a bar where there is a person, a line per evaluation elsewhere."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows round, clients a second, megabytes uploaded, the main metrics and the time left.

    Args:
        console: where to; None shows nothing.
        name: the run's.
        rounds: how many there will be.
        done: how many there have been already.
    """

    def __init__(self, console: Console | None, name: str, rounds: int, done: int = 0) -> None:
        self._console = console
        self._name = name
        self._rounds = rounds
        self._cost = ""
        self._metrics = ""
        self._bar: Bar | None = None
        if console is not None and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(name, total=rounds, completed=done, facts="")
            self._bar.start()

    def update(self, round: int, clients_per_second: float, upload_bytes: int) -> None:
        """Shows that a round is over."""
        self._cost = f"{clients_per_second:.1f} clients/s  {upload_bytes / 1e6:.2f} MB up"
        if self._bar is not None:
            self._bar.update(self._task, completed=round, facts=f"{self._cost}  {self._metrics}")

    def evaluated(self, round: int, metrics: Mapping[str, float], upload_bytes: int) -> None:
        """Shows the metrics of the main view."""
        self._metrics = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if "/" not in name)
        if self._bar is not None:
            self._bar.update(self._task, facts=f"{self._cost}  {self._metrics}")
        elif self._console is not None:
            line = f"{self._name}  round {round}/{self._rounds}  {self._metrics}  {upload_bytes / 1e6:.2f} MB up"
            self._console.print(line, highlight=False, soft_wrap=True)

    def say(self, note: str) -> None:
        """Shows a line that the user should read."""
        if self._console is not None:
            self._console.print(note, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal in order."""
        if self._bar is not None:
            self._bar.stop()
