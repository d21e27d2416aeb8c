"""The papers' tables and figures as sweeps: every run of every one is a valid run, and says where it comes from."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.registry import SWEEPS, choices
from launch.sweeps.definition import read_sweep
from launch.sweeps.flasc_search import reachable
from launch.sweeps.plan import plan_runs
from launch.sweeps.search_space import Configuration, SearchSpace

NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
OF_THE_PAPERS = {
    *("table1", "table3", "fig1", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9_reddit", "fig9_flair", "fig10"),
    *(f"fig3_{data}" for data in ("cifar10", "20newsgroups", "reddit", "flair")),
    *("fig_centralised", "flora_na_nlu", "flora_na_math", "flora_na_code"),
}


def test_every_table_and_figure_is_there() -> None:
    assert set(NAMES) >= OF_THE_PAPERS
    assert {choice.name for choice in choices("sweeps")} == {f"paper/{name}" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_all_runs_of_a_sweep_are_valid_and_differ(name: str, tmp_path: Path) -> None:
    """With one value of each key of a grid, as reading settings takes a tenth of a second."""
    sweep = read_sweep(f"paper/{name}")
    if sweep.search:
        sweep = replace(sweep, runs=[one.keys for one in _some(sweep.search)], search=None)
    thin = {key: values[-1:] if sweep.runs else values[-2:] for key, values in sweep.grid.items()}
    runs = plan_runs(replace(sweep, grid=thin, seeds=None), [], tmp_path)
    folders = [run.folder for run in runs]
    assert len(set(folders)) == len(folders) >= 4
    assert not list(tmp_path.iterdir())


def _some(space: SearchSpace) -> list[Configuration]:
    """The ends of the search, and of each of its grids."""
    ends = [found[at] for found in (reachable(space.ranks, space.densities), *space.grids().values()) for at in (0, -1)]
    return list(dict.fromkeys(ends))
