"""Two workers in one process: a thread each, which meet at every collective. For models without dropout, as torch's
random state is one for both."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.schedule import Wave
from fedsim.transport import Workers

SECONDS = 60


class Meeting:
    """Where the two leave what the other one needs."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)
        self._left: dict[int, Any] = {}

    def exchange(self, rank: int, mine: Any) -> list[Any]:
        """What both left, by rank."""
        self._left[rank] = mine
        self._barrier.wait(SECONDS)
        found = [self._left[0], self._left[1]]
        self._barrier.wait(SECONDS)
        return found

    def give_up(self) -> None:
        self._barrier.abort()


class Threaded(Workers):
    """One of the two."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, 2, torch.device("cpu"))
        self._meeting = meeting

    def broadcast(self, payloads: Sequence[bytes] | None) -> list[bytes]:
        return list(self._meeting.exchange(self.rank, payloads)[0])

    def gather(self, payloads: Mapping[int, bytes], wave: Wave) -> Iterator[tuple[int, bytes]]:
        found = self._meeting.exchange(self.rank, dict(payloads))
        if self.is_server:
            yield from ((at, found[wave.owner(at)].get(at, b"")) for at in wave.positions)

    def sum(self, tensor: Tensor) -> Tensor:
        first, second = self._meeting.exchange(self.rank, tensor.clone())
        return first + second


def on_two(work: Callable[[Workers], Any]) -> list[Any]:
    """Runs the same work as both workers and returns what each came to."""
    meeting, results, errors = Meeting(), {}, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threaded(rank, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.give_up()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[0], results[1]]
