"""FLASC-Search by hand: what it tries, in which order, on objectives that are made up; and what that costs."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ConfigurationError
from launch.sweeps.flasc_search import Standing, conduct, flasc_search, halve, reachable, rungs
from launch.sweeps.search_results import csv_text, describe, draw_search, saved_bytes, steps_of
from launch.sweeps.search_space import GRIDS, Configuration, SearchSpace, space_of
from launch.sweeps.trials import Measure

Point = tuple[int, float]


def flasc(rank: int, density: float) -> Configuration:
    return Configuration("FLASC", rank, density)


def follow(
    ranks: Sequence[int], densities: Sequence[float], worth: Callable[[int, float], float]
) -> tuple[list[Point], list[list[Point]]]:
    """What is tried, each once, and what was proposed at once."""
    batches = []

    def attempt(batch: Sequence[Configuration]) -> dict[Configuration, Standing]:
        batches.append([(one.lora_rank, one.density) for one in batch])
        return {one: Standing(60, worth(one.lora_rank, one.density)) for one in batch}

    tried = conduct(flasc_search(ranks, densities), attempt)
    return [(one.lora_rank, one.density) for one in tried], batches


def test_density_is_tuned_on_the_lowest_ranks_then_rank_at_that_density() -> None:
    """At 1/4 the wider one is worse (0.5 < 0.6), at 1/2 better (0.8 > 0.7): then ranks 4 and 8 at 1/2."""
    worth = {(1, 0.5): 0.6, (2, 0.25): 0.5, (1, 1.0): 0.7, (2, 0.5): 0.8, (4, 0.5): 0.9, (8, 0.5): 0.85}
    tried, batches = follow([1, 2, 4, 8], [0.25, 0.5, 1], lambda rank, density: worth[rank, density])
    assert batches == [[(1, 0.5), (2, 0.25)], [(1, 1.0), (2, 0.5)], [(4, 0.5), (8, 0.5)]]
    assert tried == list(worth)


def test_a_tie_goes_on_and_where_no_density_stops_it_the_last_is_taken() -> None:
    """Rank 1 at 1/2 and at 1 would need densities above 1 for rank 1's partner: it is tried at 1, and once."""
    tried, batches = follow([1, 4, 16], [0.25, 0.5, 1], lambda rank, density: 0.5)
    assert batches == [[(1, 1.0), (4, 0.25)], [(1, 1.0), (4, 0.5)], [(1, 1.0), (4, 1)], [(16, 1)]]
    assert tried == [(1, 1.0), (4, 0.25), (4, 0.5), (4, 1), (16, 1)]


def test_two_ranks_have_none_to_grow_to() -> None:
    assert follow([2, 3], [0.5], lambda rank, density: rank) == ([(2, 0.75), (3, 0.5)], [[(2, 0.75), (3, 0.5)]])


@given(
    st.lists(st.integers(1, 64), min_size=2, max_size=6, unique=True).map(sorted),
    st.lists(st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=5, unique=True).map(sorted),
    st.integers(0, 2**32),
)
def test_it_does_what_algorithm_2_lists(ranks: list[int], densities: list[float], seed: int) -> None:
    def worth(rank: int, density: float) -> float:
        return hash((rank, density, seed)) % 7 / 7

    expected: list[Point] = []
    for density in densities:
        first, second = (ranks[0], min(1.0, round(density * ranks[1] / ranks[0], 12))), (ranks[1], density)
        expected += [first, second]
        if worth(*first) < worth(*second):
            break
    expected += [(rank, density) for rank in ranks[2:]]
    tried, _ = follow(ranks, densities, worth)
    assert tried == list(dict.fromkeys(expected))
    assert {flasc(*one) for one in tried} <= {*reachable(ranks, densities)}


def test_grids_and_their_keys() -> None:
    space = SearchSpace(ranks=[1, 4], densities=[0.5, 1.0], lth_densities=[0.98], against=GRIDS)
    found = {name: [one.keys for one in configurations] for name, configurations in space.grids().items()}
    assert found["rank_grid"] == [{"method": "LoRA", "method.lora_rank": rank} for rank in (1, 4)]
    assert found["flasc_grid"][1] == {"method": "FLASC", "method.lora_rank": 1, "method.upload_density": 1.0}
    assert found["sparse_adapter_grid"][2] == {"method": "SparseAdapter", "method.lora_rank": 4, "method.density": 0.5}
    assert found["adapter_lth_grid"][0] == {
        "method": "AdapterLTH",
        "method.lora_rank": 1,
        "method.prune_fraction": 0.02,
    }
    assert {name: len(keys) for name, keys in found.items()} == dict(zip(GRIDS, (2, 4, 4, 2), strict=True))


def test_stops_are_a_share_of_the_rounds_at_which_one_evaluates() -> None:
    assert rungs(4, rounds=60, keep=2, every=10) == [20, 30, 60]
    assert rungs(9, rounds=80, keep=3, every=1) == [9, 27, 80]
    assert rungs(3, rounds=60, keep=2, every=10) == [30, 60]
    assert rungs(1, rounds=60, keep=2, every=10) == [60]
    assert rungs(8, rounds=20, keep=2, every=10) == [10, 20]
    assert rungs(8, rounds=5, keep=2, every=10) == [5]


def test_the_hopeless_are_stopped() -> None:
    """Of four, two go on at round 20 and one at 30; who would have been the best in the end is gone by then."""
    curves = {1: {20: 0.3, 30: 0.4, 60: 0.9}, 2: {20: 0.1, 30: 0.9, 60: 1.0}}
    curves |= {3: {20: 0.4, 30: 0.35, 60: 0.4}, 4: {20: 0.3, 30: 0.99, 60: 0.99}}
    asked = []

    def advance(left: Sequence[Configuration], rounds: int) -> Mapping[Configuration, float]:
        asked.append(([one.lora_rank for one in left], rounds))
        return {one: curves[one.lora_rank][rounds] for one in left}

    batch = [flasc(rank, 1.0) for rank in (1, 2, 3, 4)]
    found = halve(batch, [20, 30, 60], 2, advance)
    assert asked == [([1, 2, 3, 4], 20), ([3, 1], 30), ([1], 60)]
    assert [(found[one].rounds, found[one].worth) for one in batch] == [(60, 0.9), (20, 0.1), (30, 0.35), (20, 0.3)]
    assert found[batch[0]] > found[batch[2]] > found[batch[3]] > found[batch[1]]


def test_who_fails_is_behind_whoever_was_stopped_and_the_next_best_goes_on() -> None:
    curves = {1: {30: 0.8, 60: float("-inf")}, 2: {30: 0.5, 60: 0.6}, 3: {30: float("-inf")}}
    batch = [flasc(rank, 1.0) for rank in curves]
    found = halve(batch, [30, 60], 2, lambda left, rounds: {one: curves[one.lora_rank][rounds] for one in left})
    assert [found[one].rounds for one in batch] == [0, 60, 0]
    alone = halve(batch[2:], [30], 2, lambda left, rounds: dict.fromkeys(left, float("-inf")))
    assert [standing.rounds for standing in alone.values()] == [0]
    curves[2][60] = float("-inf")
    found = halve(batch[:2], [30, 60], 2, lambda left, rounds: {one: curves[one.lora_rank][rounds] for one in left})
    assert {standing.rounds for standing in found.values()} == {0}


def test_densities_of_equal_cost_are_the_grids_own() -> None:
    grid = SearchSpace(ranks=[1, 3], densities=[0.1, 0.3], against=["flasc_grid"]).grids()["flasc_grid"]
    assert flasc(1, 0.3) in reachable([1, 3], [0.1])
    assert set(reachable([1, 3], [0.1])) & set(grid) == {flasc(1, 0.3), flasc(3, 0.1)}


def test_what_came_further_in_an_earlier_batch_stays_what_it_was() -> None:
    """Rank 1 at density 1 wins and is run to the end, then loses at half the way: its bytes are all counted."""
    pair = [flasc(1, 1.0), flasc(4, 0.5)]
    answers = [
        {pair[0]: Standing(60, 0.8), pair[1]: Standing(30, 0.1)},
        {pair[0]: Standing(30, 0.5), flasc(4, 1.0): Standing(60, 0.9)},
    ]
    tried = conduct(flasc_search([1, 4], [0.5, 1.0]), lambda batch: answers.pop(0))
    assert tried[pair[0]] == Standing(60, 0.8)


def measured(rounds: int, validation: float, upload_bytes: int) -> Measure:
    return Measure(rounds, validation, validation - 0.02, validation + 0.03, validation - 0.1, upload_bytes)


def test_costs_accumulate_and_the_best_is_who_did_most_with_least() -> None:
    found = {
        flasc(1, 0.5): measured(60, 0.6, 100),
        flasc(2, 0.25): measured(30, 0.9, 40),  # it was stopped, and does not count
        flasc(1, 1.0): measured(60, 0.8, 210),
        flasc(2, 0.5): measured(60, 0.8, 190),  # as good, with less
        flasc(4, 0.5): measured(60, 0.7, 300),
    }
    steps = steps_of({one: Standing(m.rounds, m.validation) for one, m in found.items()}, found)
    assert [step.accumulated_bytes for step in steps] == [100, 140, 350, 540, 840]
    assert [step.so_far.configuration.lora_rank for step in steps] == [1, 1, 1, 2, 2]
    assert saved_bytes(steps, 60) == 40
    rows = list(csv.DictReader(io.StringIO(csv_text({"flasc_search": steps}, [0, 1]))))
    assert [row["best_so_far"] for row in rows] == ["0.6", "0.6", "0.8", "0.8", "0.8"]
    assert [row["chosen"] for row in rows] == ["0", "0", "0", "1", "0"]
    assert (rows[3]["lora_rank"], rows[3]["density"], rows[3]["seeds"], rows[3]["rounds"]) == ("2", "0.5", "0 1", "60")
    said = describe("flasc_search", steps, "accuracy")
    assert "FLASC, rank 2, density 0.5; accuracy 80.0 % (78.0 to 83.0) on validation, 70.0 % on test; 5 config" in said


def test_the_figure_shows_the_best_so_far() -> None:
    found = {flasc(1, 0.5): measured(60, 0.6, 1_000_000), flasc(2, 0.5): measured(60, 0.5, 2_000_000)}
    steps = steps_of({one: Standing(60, m.validation) for one, m in found.items()}, found)
    figure = draw_search({"flasc_search": steps, "rank_grid": steps[:1]}, "accuracy")
    linear, logarithmic = figure.axes
    assert linear.lines[0].get_xydata().tolist() == [[1.0, 60.0], [3.0, 60.0]]
    assert [line.get_label() for line in linear.lines] == ["FLASC-Search", "LoRA, ranks"]
    assert logarithmic.get_xscale() == "log"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"ranks": [4]}, "ranks is .4.; expected two or more"),
        ({"ranks": [0, 1]}, "ranks is 0; expected 1 or more"),
        ({"ranks": [1, 2.5]}, "1 or more, whole"),
        ({"ranks": ["a", "b"]}, "two or more whole numbers"),
        ({"densities": [1.5]}, r"densities is .1\.5.; expected"),
        ({"densities": 0.5}, r"densities is 0\.5; expected numbers"),
        ({"lth_densities": [0.0]}, r"lth_densities is .0\.0.; expected"),
        ({"against": ["rank_gird"]}, "did you mean rank_grid"),
        ({"against": "rank_grid"}, "expected a list of rank_grid"),
        ({"halving": 1}, "halving is 1; expected 2 or more"),
        ({"rank": [1, 2]}, "did you mean ranks"),
    ],
    ids=str,
)
def test_a_space_that_cannot_be_searched(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        space_of(entries)


def test_a_space_puts_its_numbers_in_order() -> None:
    space = space_of({"ranks": [4, 1, 4], "densities": [1, 0.5]})
    assert (space.ranks, space.densities) == ((1, 4), (0.5, 1))
