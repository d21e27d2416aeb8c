"""Kills a worker of a run on two workers, again and again, and holds what becomes of it against an undisturbed run.

    python -m launch.drills.kill --kills 50

Which run, in which stage, which worker and when is drawn by seed. Every kill is real (SIGKILL, in the middle of a local
step, before a collective, between the files of a checkpoint, before a batch of the evaluation); so is every restart.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.options import require
from launch.arguments import Arguments
from launch.drills import victim, workers
from launch.drills.outcome import bits

COMMON = ("--rounds", "12", "--cohort_size", "6", "--evaluate_every_rounds", "3", "--checkpoint_every_rounds", "2")
CASES: dict[str, tuple[str, ...]] = {
    "FLASC": ("--method", "FLASC"),
    "FLASC, packed": ("--method", "FLASC", "--client.pack", "3"),
    "client state": ("--method", "FedSALoRA", "--evaluation.held_out", "0.2"),
    "changes the backbone": ("--method", "FedExLoRA"),
}
MOMENTS = {"train": 30, "gather": 20, "save": 12, "evaluate": 4}
"""How often a worker gets to a stage in such a run, at least; a checkpoint is the server worker's."""
FEWER = {("FLASC, packed", "train"): 12}
"""Less often, as a packed step is one for all."""


SECONDS = 300
"""After which a run counts as one that hangs."""


@dataclass(frozen=True)
class Kill:
    """Where a worker dies.

    Attributes:
        case: of `CASES`.
        stage: of `MOMENTS`.
        rank: which worker.
        count: when it gets there for this time.
    """

    case: str
    stage: str
    rank: int
    count: int


def main(argv: Sequence[str] | None = None) -> int:
    """Kills, restarts, compares, and prints a line each; 1 where any outcome differs."""
    parser = Arguments("drill", "Kills workers at drawn moments; every run must end as if nothing had happened.")
    parser.add_argument("--kills", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--first", type=int, default=1, help="go on from this one (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    require("--kills", arguments.kills, arguments.kills >= 1, "1 or more")
    require("--first", arguments.first, 1 <= arguments.first <= arguments.kills, "1 to the number of kills")
    same = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = draw(arguments.kills, arguments.seed)[arguments.first - 1 :]
        for case in dict.fromkeys(kill.case for kill in drawn):
            _run(folder / case, CASES[case])
        for number, kill in enumerate(drawn, start=arguments.first):
            started = time.monotonic()
            equal = survives(kill, folder / str(number), folder / kill.case)
            same += equal
            said = "same bits" if equal else "DIFFERS"
            print(
                f"{number:>3} {kill.case:<21} {kill.stage:<9} worker {kill.rank}, time {kill.count:>3}: {said}"
                f" ({time.monotonic() - started:.0f} s)",
                flush=True,
            )
    print(f"{same} of {len(drawn)} runs ended with the bits of the undisturbed one")
    return int(same < len(drawn))


def draw(kills: int, seed: int) -> list[Kill]:
    """Draws where workers die: cases and stages in turn, so that each has its share, worker and moment at random."""
    random = np.random.default_rng(seed)
    drawn = []
    for number in range(kills):
        stage = list(MOMENTS)[number % len(MOMENTS)]
        case = list(CASES)[number // len(MOMENTS) % len(CASES)]
        rank = 0 if stage == "save" else int(random.integers(2))
        moment = int(random.integers(MOMENTS[stage])) % FEWER.get((case, stage), MOMENTS[stage])
        drawn.append(Kill(case, stage, rank, moment + 1))
    return drawn


def survives(kill: Kill, run: Path, whole: Path) -> bool:
    """Starts a run that is killed, lets it go on, and says whether it ends as the undisturbed one.

    Raises:
        RuntimeError: it was not killed, or did not go on.
    """
    last_word, said = run.with_name(f"{run.name}.killed"), run.with_name(f"{run.name}.said")
    trap = (kill.stage, kill.rank, kill.count, last_word)
    launcher = workers.launch(2, victim.live, *trap, *_command(run, CASES[kill.case]), said=said)
    workers.wait(launcher, SECONDS)
    if not last_word.exists() or (run / "summary.json").exists():
        raise RuntimeError(f"{kill} was not killed: {said.read_text()[-2000:]}")
    _run(run, CASES[kill.case])
    return bits(run) == bits(whole)


def _run(run: Path, options: Sequence[str]) -> None:
    said = run.with_name(f"{run.name}.said")
    if workers.wait(workers.launch(2, workers.run, *_command(run, options), said=said), SECONDS):
        raise RuntimeError(f"a run in {run} failed: {said.read_text()[-2000:]}")


def _command(run: Path, options: Sequence[str]) -> tuple[str, ...]:
    return ("run", *COMMON, *options, "--run_dir", str(run), "--resume", "auto")


if __name__ == "__main__":
    sys.exit(main())
