"""Reports over two settings: the heat map, the Pareto front, and what does not fit in."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedsim.errors import ConfigurationError
from launch.__main__ import main
from launch.reports.findings import gather
from launch.reports.grid import Keys, grid_of, pareto
from launch.reports.grid_figures import draw_heat_map, draw_pareto
from launch.reports.report import Options, report
from tests.launch.test_report import write_run

KEYS: Keys = ("method.lora_rank", "method.upload_density")
FINALS = {(1, 0.25): 0.5, (1, 1.0): 0.45, (4, 0.25): 0.7, (4, 1.0): 0.9, (8, 1.0): 0.9}


def write_cell(folder: Path, rank: object, density: object, final: float, seed: int = 0, extra: str = "") -> None:
    config = (
        f"method:\n  class_path: methods.FLASC\n  init_args:\n    lora_rank: {rank}\n    upload_density: {density}\n"
    )
    upload = round(1e6 * float(str(rank)) * (float(str(density)) if density != "null" else 1))
    name = f"FLASC {density}"
    write_run(folder, name, [0.1, final], seed=seed, round_bytes=upload, config=config + extra)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Ranks by densities without one of them, two seeds each, and a run without a density."""
    for index, ((rank, density), final) in enumerate(FINALS.items()):
        for seed in (0, 1):
            write_cell(tmp_path / f"{index}-{seed}", rank, density, final - 0.02 * seed, seed)
    write_cell(tmp_path / "lora", 4, "null", 0.95)
    return tmp_path


def slow_front(points: list[tuple[float, float]], higher: bool) -> list[bool]:
    """Each point against each: beaten by one that is no worse in both and better in one."""
    sign = 1 if higher else -1
    signed = [(cost, sign * value) for cost, value in points]
    return [not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in signed) for cost, value in signed]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-4, 4)), max_size=12), st.booleans())
def test_the_front_is_what_no_point_beats(points: list[tuple[float, float]], higher: bool) -> None:
    assert pareto(points, higher) == slow_front(points, higher)


def test_cells_and_front_are_those_worked_out_by_hand(cells: Path) -> None:
    grid = grid_of(gather([cells], None, None), KEYS)
    assert (grid.across, grid.up) == ([1, 4, 8], [0.25, 1.0])
    assert {at: row.final.high for at, row in grid.cells.items()} == FINALS
    # Rank 1 whole costs what rank 4 at a quarter does and is worse; rank 8 is no better than 4.
    assert grid.front == {(1, 0.25), (4, 0.25), (4, 1.0)}
    assert grid.notes == ["not in the heat map, no number for method.upload_density: FLASC null"]


def test_figures_show_values_where_they_belong(cells: Path) -> None:
    grid = grid_of(gather([cells], None, None), KEYS)
    panel: Any = draw_heat_map(grid, "accuracy", True).axes[0]
    shown = {text.get_position(): text.get_text() for text in panel.texts}
    assert shown == {
        (0, 0): "49.0\n0.250 MB",
        (0, 1): "44.0\n1.00 MB",
        (1, 0): "69.0\n1.00 MB",
        (1, 1): "89.0\n4.00 MB",
        (2, 1): "89.0\n8.00 MB",
    }
    assert panel.collections[0].get_array().mask.tolist() == [[False, False, True], [False, False, False]]
    assert len(panel.patches) == 3
    assert panel.get_xlabel() == KEYS[0]

    panel = draw_pareto(grid, "accuracy", True).axes[0]
    lines: dict[str, Any] = {str(line.get_label()): line for line in panel.lines}
    assert list(lines) == ["1", "4", "8", "Pareto front"]
    assert list(lines["4"].get_xdata()) == [1, 4]
    assert list(lines["4"].get_ydata()) == pytest.approx([69, 89])
    assert list(lines["Pareto front"].get_xdata()) == [0.25, 1, 4]
    assert [text.get_text() for text in panel.texts] == ["0.25", "0.25", "1"]


def test_better_is_brighter_also_where_less_is_better(cells: Path) -> None:
    grid = grid_of(gather([cells], None, None), KEYS)
    for higher in (True, False):
        mesh: Any = draw_heat_map(grid, "accuracy", higher).axes[0].collections[0]
        low, high = mesh.cmap(mesh.norm(np.array([44.0, 89.0])))[:, :3].sum(axis=1)
        assert (low < high) == higher


def test_the_command_writes_them_with_their_csv(cells: Path) -> None:
    assert main(["report", str(cells), "--heat_map", *KEYS, "--out", str(cells / "out")]) == 0
    with (cells / "out" / "report_heat_map.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(float(row[KEYS[0]]), float(row[KEYS[1]])) for row in rows] == sorted(FINALS)
    assert [row["on_front"] for row in rows] == ["1", "0", "1", "1", "0"]
    for name in ("report_heat_map", "report_pareto"):
        assert (cells / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in (cells / "out" / "report.md").read_text()
        assert "</svg>" in (cells / "out" / f"{name}.svg").read_text()
    assert "not in the heat map" in (cells / "out" / "report.md").read_text()


def test_what_is_no_grid_is_refused_before_anything_is_written(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for keys, message in (
        (
            ("method.lora_rnak", KEYS[1]),
            "unknown setting of --heat_map 'method.lora_rnak'; did you mean method.lora_rank",
        ),
        (("method", KEYS[1]), "values of method are none, expected runs with two or more"),
    ):
        assert main(["report", str(cells), "--heat_map", *keys]) == 2
        assert message in capsys.readouterr().err
    write_cell(cells / "twice", 4, 1.0, 0.8, extra="client:\n  lr: 0.5\n")
    with pytest.raises(ConfigurationError, match=r"both have method.lora_rank=4, method.upload_density=1,"):
        grid_of(gather([cells], None, None), KEYS)
    assert not (cells / "report.md").exists()


def test_one_value_is_no_grid(tmp_path: Path) -> None:
    for rank in (1, 4):
        write_cell(tmp_path / str(rank), rank, 0.5, 0.6)
    with pytest.raises(ConfigurationError, match=r"method.upload_density are only 0\.5"):
        grid_of(gather([tmp_path], None, None), KEYS)


def test_a_run_that_diverged_is_named(cells: Path) -> None:
    write_run(cells / "bad", "Bad", [0.1, None], config="method:\n  lora_rank: 8\n  upload_density: 0.25\n")
    notes = grid_of(gather([cells], None, None), KEYS).notes
    assert "not in the heat map, no finite final accuracy: Bad" in notes


def test_nothing_uploaded_has_no_log_axis(tmp_path: Path) -> None:
    for rank in (1, 4):
        for density in (0.5, 1.0):
            write_cell(tmp_path / f"{rank}-{density}", rank, density, 0.1 * rank + density / 2)
    write_run(
        tmp_path / "zero", "Zero", [0.1, 0.1], round_bytes=0, config="method:\n  lora_rank: 8\n  upload_density: 1\n"
    )
    grid = grid_of(gather([tmp_path], None, None), KEYS)
    assert draw_pareto(grid, "accuracy", True).axes[0].get_xscale() == "linear"
    draw_pareto(grid, "accuracy", True).savefig(io.BytesIO(), format="svg")


def test_console_names_what_is_left_out(cells: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.reports.report.render", lambda figure, kind: b"")
        report([cells], None, None, console, Options(heat_map=KEYS))
    assert "not in the heat map" in console.file.getvalue()  # type: ignore[attr-defined]
