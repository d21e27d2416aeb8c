"""FLASC-Search: which configurations are tried, and when; what halving stops. Pure: nothing is run here.

Kuo et al., "FLASC: Federated LoRA with Sparse Communication", Section 4.2 and Algorithm 2.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from launch.sweeps.search_space import Configuration


@dataclass(frozen=True, order=True)
class Standing:
    """How a configuration did, to be compared: whoever came further is better, then whoever is worth more.

    Attributes:
        rounds: how far it was run; all the same unless hopeless ones are stopped.
        worth: the validation metric, turned so that more is better.
    """

    rounds: int
    worth: float


Search = Generator[Sequence[Configuration], Mapping[Configuration, Standing], None]
"""Proposes configurations that may be tried at once, and is told how they did."""


def flasc_search(ranks: Sequence[int], densities: Sequence[float]) -> Search:
    """Tunes the density on the two lowest ranks, then the rank at that density (Algorithm 2).

    Lines 3 to 7: FLASC(r_1, d r_2 / r_1) and FLASC(r_2, d) send as many values of LoRA. The first density at which the
    latter does better stops the sweep; if none does, the last is taken. A density that would exceed 1 is 1: then the
    pair is not of equal cost, and its real bytes are counted.

    Lines 8 and 9 are garbled in print ("for j = i..M, y_j = FLASC(r_3, d_i r_1 / r_2)"). The text says what is meant,
    "we fix d and increase the rank": FLASC(r_j, d) for j = 3..M.

    Args:
        ranks: r_1 < ... < r_M, two or more.
        densities: d_1 < ... < d_N, in (0, 1].
    """
    first, second, *higher = ranks
    density = densities[0]
    for density in densities:
        low, high = _pair(first, second, density)
        found = yield [low, high]
        if found[low] < found[high]:
            break
    if higher:
        yield [Configuration("FLASC", rank, density) for rank in higher]


def reachable(ranks: Sequence[int], densities: Sequence[float]) -> list[Configuration]:
    """Lists every configuration that `flasc_search` may come to propose."""
    first, second, *higher = ranks
    pairs = [one for density in densities for one in _pair(first, second, density)]
    grown = [Configuration("FLASC", rank, density) for rank in higher for density in densities]
    return list(dict.fromkeys([*pairs, *grown]))


def _pair(first: int, second: int, density: float) -> tuple[Configuration, Configuration]:
    low = Configuration("FLASC", first, min(1.0, round(density * second / first, 12)))  # 0.1 * 3 is not 0.3
    return low, Configuration("FLASC", second, density)


Try = Callable[[Sequence[Configuration]], Mapping[Configuration, Standing]]


def conduct(search: Search, attempt: Try) -> dict[Configuration, Standing]:
    """Follows a search to its end.

    Args:
        search: proposes.
        attempt: runs what is proposed, and says how it did, all at as many rounds unless hopeless ones are stopped.
            What was tried before is there already, so that it costs nothing again.

    Returns:
        How each configuration did where it came furthest, in the order in which they were first tried.
    """
    tried: dict[Configuration, Standing] = {}
    try:
        batch = next(search)
        while True:
            found = attempt(batch)
            for one, standing in found.items():
                if one not in tried or tried[one].rounds < standing.rounds:
                    tried[one] = standing
            batch = search.send(found)
    except StopIteration:
        return tried


def rungs(configurations: int, rounds: int, keep: int, every: int) -> list[int]:
    """The rounds at which successive halving looks, rising, the last being all of them.

    Args:
        configurations: how many start.
        rounds: of a whole run.
        keep: one of so many goes on each time, 2 or more.
        every: rounds between evaluations, of which rungs are multiples.
    """
    found = {rounds}
    share = keep
    while share <= configurations:
        rung = every * ceil(rounds / share / every)
        found |= {rung} if rung < rounds else set()
        share *= keep
    return sorted(found)


def halve(
    batch: Sequence[Configuration],
    stops: Sequence[int],
    keep: int,
    advance: Callable[[Sequence[Configuration], int], Mapping[Configuration, float]],
) -> dict[Configuration, Standing]:
    """Runs all to the first stop, the better part of them to the next, and so on (Jamieson and Talwalkar 2016).

    Args:
        batch: who competes.
        stops: rounds, rising; one alone runs all of them to it.
        keep: one of so many goes on, rounded up; of equals those that were proposed first.
        advance: runs some to a round, and says what each is worth there; minus infinity where it failed.

    Returns:
        How far each came, and what it was worth there; what fails came nowhere.
    """
    found = dict.fromkeys(batch, Standing(0, float("-inf")))
    left, stopped = list(found), list[Configuration]()
    for stop in stops:
        able: list[Configuration] = []
        while left and not able:  # where all fail, the best of those that were stopped go on
            worth = advance(left, stop)
            found |= {one: Standing(stop, worth[one]) for one in left if worth[one] > float("-inf")}
            found |= {one: Standing(0, worth[one]) for one in left if worth[one] == float("-inf")}
            able = sorted((one for one in left if found[one].rounds), key=lambda one: -worth[one])
            if not able:
                left, stopped = stopped[: len(left)], stopped[len(left) :]
        better = ceil(len(able) / keep)
        left, stopped = able[:better], [*able[better:], *stopped]
    return found
