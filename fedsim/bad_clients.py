"""Clients whose work cannot be used: what is wrong with it, and what becomes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from fedsim.client import Trained
from fedsim.errors import TrainingError
from fedsim.options import BadClientPolicy
from fedsim.state import ServerState


@dataclass(frozen=True)
class Judged:
    """A client's work, and what was wrong with it.

    Attributes:
        trained: what it may upload; None where it is left out.
        fault: what was wrong, or nothing.
    """

    trained: Trained | None
    fault: str = ""


def judge(trained: Trained, policy: BadClientPolicy, max_norm: float | None) -> Judged:
    """Looks at what a client made before it is sent.

    Args:
        trained: the job that is done.
        policy: skip leaves a bad client out, fail stops the run, clip shortens an update that is too long and leaves
            others out, as nothing else can be done with them.
        max_norm: how long an update may be; None for any length.

    Raises:
        TrainingError: its work is bad and the policy is to fail; it names client and round.
    """
    fault, norm = _fault(trained, max_norm)
    if not fault:
        return Judged(trained)
    job = trained.job
    if policy == "fail":
        raise TrainingError(
            f"the update of client {job.client} in round {job.shared.round}: {fault}; lower client.lr or server.lr, "
            "or leave such clients out (on_bad_client skip)"
        )
    if policy == "clip" and max_norm is not None and isfinite(norm):
        vector = job.reference + (trained.vector - job.reference) * (max_norm / norm)
        return Judged(replace(trained, vector=vector), fault)
    return Judged(None, fault)


class Faults:
    """What was wrong in a round, as the server worker hears of it.

    Args:
        round: which.
    """

    def __init__(self, round: int) -> None:
        self._round = round
        self._found: list[tuple[int, str]] = []
        self._left_out = 0

    def hear(self, client: int, told: Mapping[str, Any]) -> None:
        """Takes down what a worker told of a client's work, where something was wrong with it."""
        if told.get("fault"):
            self._found.append((client, told["fault"]))
            self._left_out += told.get("left_out", False)

    def report(self, state: ServerState, clients: int, steps_anyway: bool = False) -> None:
        """Leaves a line for the user, and how many were left out, with the server.

        Args:
            state: the server's.
            clients: how many trained.
            steps_anyway: whether the server steps although all were left out, as by noise alone.

        Raises:
            TrainingError: all were left out.
        """
        if not self._found:
            return
        client, fault = self._found[0]
        if self._left_out == clients and not steps_anyway:
            raise TrainingError(
                f"round {self._round}: all {clients} clients were left out, client {client} because {fault}; lower "
                "client.lr or server.lr"
            )
        done = f"{self._left_out} of {clients} clients left out"
        if not self._left_out:
            done = f"{len(self._found)} of {clients} updates shortened"
        state.notes.append(f"round {self._round}: {done}, client {client} as {fault}")
        state.measures["left_out_clients"] = self._left_out


def _fault(trained: Trained, max_norm: float | None) -> tuple[str, float]:
    """What is wrong, or nothing; and how long the update is, infinite where it is not finite."""
    broken = int((~trained.vector.isfinite()).sum())
    if broken:
        return f"{broken} of {len(trained.vector)} values are not finite", float("inf")
    lost = [name for name, value in trained.logged.items() if name == "train/loss" and not isfinite(value)]
    if lost:
        return "its loss is not finite", float("inf")
    if max_norm is None:
        return "", 0.0
    norm = float((trained.vector - trained.job.reference).norm())
    return (f"its update has length {norm:.3g}, above max_update_norm {max_norm:g}" if norm > max_norm else ""), norm
