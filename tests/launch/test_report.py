import csv
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsim.errors import ConfigurationError
from launch.__main__ import main
from launch.reports.against import AGAINST
from launch.reports.canvas import COLOURS, LINES, MARKERS
from launch.reports.curves import Band, group_runs
from launch.reports.figures import draw
from launch.reports.findings import gather, parse_target
from launch.reports.report import report
from launch.reports.results import find_runs, read_run
from launch.reports.target_figure import draw_target

HEADER = "round,upload_bytes,download_bytes,upload_value_bytes,download_value_bytes,accuracy,loss,seconds"
BETTER = {"accuracy": True, "loss": False}


def write_run(
    folder: Path,
    name: str,
    accuracies: Sequence[float | None],
    *,
    seed: int = 0,
    round_bytes: int = 1_000_000,
    config: str | None = None,
    better: Mapping[str, bool] = BETTER,
    finished: bool = True,
) -> Path:
    """A run evaluated every round; loss is 1 - accuracy, and the download twice the upload."""
    folder.mkdir(parents=True)
    header = HEADER.replace("accuracy,loss", ",".join(better))
    lines = [header]
    for step, accuracy in enumerate(accuracies):
        upload = step * round_bytes
        cells = ["", ""] if accuracy is None else [accuracy, round(1 - accuracy, 6)]
        lines.append(",".join(map(str, [step, upload, 2 * upload, upload, 2 * upload, *cells[: len(better)], 0.5])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    if finished:
        summary = {"name": name, "seed": seed, "final": dict.fromkeys(better, 0.5), "higher_is_better": dict(better)}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def points(panel: Any) -> list[list[float]]:
    """The first line's x and y values."""
    return [list(panel.lines[0].get_xdata()), list(panel.lines[0].get_ydata())]


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open(newline="") as stream:
        return {row["label"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def pictures() -> None:
    """Asked for by the tests that need real pictures: rendering is most of the time of a report."""


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("launch.reports.report.render", lambda figure, kind: b"")


@pytest.fixture
def three_seeds(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", "LoRA", [0.1, 0.5, 0.80, 0.90], seed=0, round_bytes=2_000_000)
    write_run(tmp_path / "b", "LoRA", [0.1, 0.6, 0.70, 0.84], seed=1, round_bytes=2_200_000)
    write_run(tmp_path / "c", "LoRA", [0.1, 0.9, 0.85, 0.60], seed=2, round_bytes=2_400_000)
    return tmp_path


def test_bytes_to_target_and_spread_are_those_worked_out_by_hand(three_seeds: Path) -> None:
    """Each seed counts to its first evaluation at the target, even where it falls below it again."""
    folder = report([three_seeds], ("accuracy", 0.8), None, quiet())
    row = table(folder)["LoRA"]
    assert row["seeds"] == "0 1 2"
    assert int(row["upload_bytes_to_target"]) == (4_000_000 + 6_600_000 + 2_400_000) / 3 // 1
    assert int(row["download_bytes_to_target"]) == 8_666_667
    assert row["seeds_reached"] == "3"
    assert int(row["upload_bytes"]) == 6_600_000
    assert int(row["download_bytes"]) == 13_200_000
    assert float(row["final_mean"]) == pytest.approx(0.78)
    assert [float(row[key]) for key in ("final_min", "final_max")] == [0.6, 0.9]
    assert float(row["best_mean"]) == pytest.approx((0.9 + 0.84 + 0.9) / 3)
    assert (
        "| LoRA | 3 | 78.0 (60.0–90.0) | 88.0 (84.0–90.0) | 6.60 | 4.33 | 13.2 |" in (folder / "report.md").read_text()
    )


def test_a_budget_tells_the_metric_when_it_is_spent(three_seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 4.5 MB the seeds have done two rounds, two and one: an evaluation beyond the budget does not count."""
    assert main(["report", str(three_seeds), "--budget", "4.5"]) == 0
    assert "accuracy at 4.5 MB (%)" in (three_seeds / "report.md").read_text()
    row = table(three_seeds)["LoRA"]
    assert int(row["budget_bytes"]) == 4_500_000
    assert float(row["budget_mean"]) == pytest.approx((0.80 + 0.70 + 0.9) / 3)
    assert [float(row[key]) for key in ("budget_min", "budget_max")] == [0.70, 0.9]
    assert main(["report", str(three_seeds), "--budget", "0"]) == 2
    assert "--budget is 0" in capsys.readouterr().err


def test_a_target_that_a_seed_misses_has_no_mean(three_seeds: Path) -> None:
    """A mean over the seeds that got there would make a method look cheap for failing."""
    folder = report([three_seeds], ("accuracy", 0.87), None, quiet())
    row = table(folder)["LoRA"]
    assert (row["upload_bytes_to_target"], row["seeds_reached"]) == ("", "2")
    assert "not reached (only 2 of 3 seeds)" in (folder / "report.md").read_text()


def test_a_lower_is_better_metric_turns_best_and_target_around(three_seeds: Path) -> None:
    row = table(report([three_seeds / "a"], ("loss", 0.2), three_seeds, quiet()))["LoRA"]
    assert float(row["best_mean"]) == pytest.approx(0.1)
    assert int(row["upload_bytes_to_target"]) == 4_000_000


def test_without_a_target_accuracy_is_the_metric_and_the_column_is_left_out(three_seeds: Path) -> None:
    folder = report([three_seeds], None, None, quiet())
    assert table(folder)["LoRA"]["metric"] == "accuracy"
    assert "upload to" not in (folder / "report.md").read_text()


def test_without_accuracy_the_first_of_final_is_the_metric(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "LoRA", [0.1, 0.5], better={"perplexity": False, "loss": False})
    assert table(report([tmp_path], None, None, quiet()))["LoRA"]["metric"] == "perplexity"


def test_band_averages_equal_rounds_and_mean_bytes(three_seeds: Path) -> None:
    curves, notes = group_runs([read_run(three_seeds / name) for name in "abc"])
    band = curves[0].band("accuracy")
    assert notes == []
    assert band.upload_bytes.tolist() == [0, 2_200_000, 4_400_000, 6_600_000]
    assert band.mean == pytest.approx([0.1, 2 / 3, 2.35 / 3, 0.78])
    assert band.low.tolist() == [0.1, 0.5, 0.7, 0.6]
    assert band.high.tolist() == [0.1, 0.9, 0.85, 0.9]


@pytest.mark.usefixtures("pictures")
def test_empty_cells_are_passed_over(tmp_path: Path) -> None:
    """An empty cell is a value that was not finite: no zero, no broken file, and no NaN in the band."""
    write_run(tmp_path / "a", "LoRA", [0.1, None, 0.7, None], seed=0)
    write_run(tmp_path / "b", "LoRA", [0.1, 0.4, 0.5, 0.9], seed=1)
    write_run(tmp_path / "c", "Diverged", [None, None], seed=0)
    console = quiet()
    row = table(report([tmp_path], ("accuracy", 0.5), None, console))
    assert row["LoRA"]["final_mean"] == ""
    assert float(row["LoRA"]["best_mean"]) == pytest.approx(0.8)
    assert int(row["LoRA"]["upload_bytes_to_target"]) == 2_000_000
    assert row["Diverged"]["best_mean"] == ""
    assert "not drawn, no finite accuracy: Diverged" in console.file.getvalue()  # type: ignore[attr-defined]
    curve = next(curve for curve in group_runs([read_run(tmp_path / n) for n in "ab"])[0])
    assert curve.band("accuracy").mean.tolist() == pytest.approx([0.1, 0.6])


def test_runs_of_one_name_and_other_settings_are_curves_of_their_own(tmp_path: Path) -> None:
    """A sweep over lr must not be averaged as if it were seeds."""
    for index, (lr, seed) in enumerate([(0.1, 0), (0.1, 1), (0.01, 0)]):
        config = f"method:\n  class_path: methods.FLASC\nclient:\n  lr: {lr}\nseed: {seed}\ndata:\n  seed: {seed}\n"
        write_run(tmp_path / str(index), "FLASC 1/4", [0.1, 0.5 + lr + 0.01 * seed], seed=seed, config=config)
    curves, _ = group_runs([read_run(path) for path in find_runs([tmp_path])[0]])
    assert {curve.label: curve.seeds for curve in curves} == {
        "FLASC 1/4, client.lr=0.1": (0, 1),
        "FLASC 1/4, client.lr=0.01": (0,),
    }


def test_a_class_says_more_than_its_arguments(tmp_path: Path) -> None:
    for index, data in enumerate(("class_path: data_partitions.Digits", "class_path: a.CIFAR10\n  size: 32")):
        write_run(tmp_path / str(index), "LoRA", [0.1, 0.5 + 0.1 * index], config=f"data:\n  {data}\n")
    curves, _ = group_runs([read_run(path) for path in find_runs([tmp_path])[0]])
    assert {curve.label for curve in curves} == {"LoRA, data=Digits", "LoRA, data=CIFAR10"}


def test_a_repeated_run_is_left_out_and_a_contradicting_one_stands_alone(tmp_path: Path) -> None:
    for name, last in (("first", 0.5), ("again", 0.5), ("other", 0.6)):
        write_run(tmp_path / name, "LoRA", [0.1, last])
    curves, notes = group_runs([read_run(tmp_path / name) for name in ("first", "again", "other")])
    assert [curve.label for curve in curves] == ["LoRA", "LoRA (other)"]
    assert notes == [f"left out, the same as {tmp_path / 'first'}: {tmp_path / 'again'}"]


def test_folders_of_one_name_are_told_apart_by_those_above(tmp_path: Path) -> None:
    for at, name in enumerate(("a/s0", "b/s0", "c/x/s0", "d/x/s0")):
        write_run(tmp_path / name, "LoRA", [0.1, 0.5 + 0.1 * at])
    curves, _ = group_runs([read_run(tmp_path / name) for name in ("a/s0", "b/s0", "c/x/s0", "d/x/s0")])
    assert sorted(curve.label for curve in curves) == ["LoRA", "LoRA (b/s0)", "LoRA (c/x/s0)", "LoRA (d/x/s0)"]


def test_labels_that_no_folder_tells_apart_have_a_number(tmp_path: Path) -> None:
    write_run(tmp_path / "s0", "LoRA", [0.1, 0.5])
    run = read_run(tmp_path / "s0")
    others = [replace(run, metrics={"accuracy": run.metrics["accuracy"] + more}) for more in (0.1, 0.2)]
    labels = [curve.label for curve in group_runs([run, *others])[0]]
    assert len({*labels}) == 3


@pytest.mark.usefixtures("pictures")
def test_files_are_written_where_told_and_come_out_equal_again(three_seeds: Path) -> None:
    out = three_seeds / "somewhere" / "new"
    written = []
    for _ in range(2):
        assert report([three_seeds], ("accuracy", 0.8), out, quiet()) == out
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1]
    assert {path.name for path in out.iterdir()} == {
        *("report.csv", "report.md", "report.tex", "report.png", "report.svg"),
        *("report_curves.csv", "report_target.png", "report_target.svg"),
    }
    png = (out / "report.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 2200
    assert len(png) > 40_000
    assert "</svg>" in (out / "report.svg").read_text()


def test_default_folder_is_what_the_paths_share(three_seeds: Path) -> None:
    assert report([three_seeds / "a", three_seeds / "b"], None, None, quiet()) == three_seeds
    # A shell's runs/* now names the report's own files too.
    assert report(sorted(three_seeds.iterdir()), None, None, quiet()) == three_seeds


def test_an_unfinished_run_is_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "done", "LoRA", [0.1, 0.5])
    write_run(tmp_path / "runs" / "killed", "FLASC 1/4", [0.1, 0.2], finished=False)
    console = quiet()
    folder = report([tmp_path], None, None, console)
    note = f"left out, not finished: {tmp_path / 'runs' / 'killed'}"
    assert list(table(folder)) == ["LoRA"]
    assert note in console.file.getvalue()  # type: ignore[attr-defined]
    assert note in (folder / "report.md").read_text()


def test_a_run_given_twice_counts_once(three_seeds: Path) -> None:
    assert table(report([three_seeds, three_seeds / "a"], None, None, quiet()))["LoRA"]["seeds"] == "0 1 2"


def test_largest_upload_comes_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "FLASC 1/16", [0.1, 0.5], round_bytes=100)
    write_run(tmp_path / "b", "LoRA", [0.1, 0.5], round_bytes=1600)
    assert list(table(report([tmp_path], None, None, quiet()))) == ["LoRA", "FLASC 1/16"]


@pytest.mark.parametrize(("largest", "unit"), [(5_000_000, "MB"), (3_000_000_000, "GB")])
def test_figure_has_a_linear_and_a_log_panel_with_units(tmp_path: Path, largest: int, unit: str) -> None:
    run = write_run(tmp_path / "a", "LoRA", [0.1, 0.5, 0.9], round_bytes=largest // 2)
    band = group_runs([read_run(run)])[0][0].band("accuracy")
    linear, logarithmic = draw({"LoRA": band}, "accuracy", 0.8, [1]).axes
    assert linear.get_xlabel() == f"Uploaded by all clients ({unit})"
    assert linear.get_ylabel() == "Accuracy (%)"
    assert (linear.get_xscale(), logarithmic.get_xscale()) == ("linear", "log")
    scale = 1e9 if unit == "GB" else 1e6
    assert points(linear)[0] == [0, largest / 2 / scale, largest / scale]
    assert points(linear)[1] == pytest.approx([10, 50, 90])
    assert points(logarithmic)[0] == [largest / 2 / scale, largest / scale]


@pytest.mark.usefixtures("pictures")
def test_a_method_that_uploads_nothing_has_no_log_panel(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "Frozen", [0.1, 0.1], round_bytes=0)
    band: Band = group_runs([read_run(tmp_path / "a")])[0][0].band("accuracy")
    assert len(draw({"Frozen": band}, "accuracy", None, [1]).axes) == 1
    report([tmp_path], ("accuracy", 0.5), None, quiet())


def test_curves_are_drawn_against_what_is_asked_for(three_seeds: Path) -> None:
    """The download is twice the upload here, so the three axes of bytes are told apart by their ends."""
    band = group_runs([read_run(three_seeds / name) for name in "abc"])[0][0].band("accuracy")
    ends, titles = {}, {}
    for against in AGAINST:
        panels = draw({"LoRA": band}, "accuracy", None, [3], against).axes
        ends[against], titles[against] = points(panels[0])[0][-1], panels[0].get_xlabel()
        assert len(panels) == (1 if against == "rounds" else 2)
    assert ends == pytest.approx({"upload": 6.6, "download": 13.2, "total": 19.8, "rounds": 3})
    assert titles["download"] == "Downloaded by all clients (MB)"
    assert titles["rounds"] == "Round"


def test_the_curves_csv_holds_what_each_axis_needs(three_seeds: Path) -> None:
    assert main(["report", str(three_seeds), "--against", "total"]) == 0
    assert "accuracy against uploaded and downloaded bytes" in (three_seeds / "report.md").read_text()
    with (three_seeds / "report_curves.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["round"] for row in rows] == ["0", "1", "2", "3"]
    sent = [int(rows[2][f"{way}_bytes"]) for way in ("upload", "download", "total")]
    assert sent == [4_400_000, 8_800_000, 13_200_000]
    assert [float(rows[2][key]) for key in ("mean", "min", "max")] == pytest.approx([2.35 / 3, 0.7, 0.85])


def test_an_axis_that_is_none_is_refused(three_seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(three_seeds), "--against", "time"]) == 2
    assert "'upload', 'download', 'total', 'rounds'" in capsys.readouterr().err
    assert not (three_seeds / "report.md").exists()


def test_bars_are_bytes_to_the_target_and_who_misses_it_has_words(three_seeds: Path) -> None:
    write_run(three_seeds / "d", "Never", [0.1, 0.5])
    write_run(three_seeds / "e", "Sometimes", [0.1, 0.5])
    write_run(three_seeds / "f", "Sometimes", [0.1, 0.9], seed=1)
    found = gather([three_seeds], ("accuracy", 0.8), None)
    assert [row.label for row in found.rows] == ["LoRA", "Never", "Sometimes"]
    up, down = draw_target(found.rows, "accuracy", 0.8).axes
    bars = {panel: [bar.get_width() for bar in panel.patches] for panel in (up, down)}  # type: ignore[attr-defined]
    assert bars[up] == pytest.approx([13 / 3])
    assert bars[down] == pytest.approx([26 / 3])
    assert up.collections[0].get_segments()[0][:, 0].tolist() == [2.4, 6.6]  # type: ignore[attr-defined]
    words = [text.get_text() for text in up.texts]
    assert words == ["4.33", "not reached", "not reached (only 1 of 2 seeds)"]
    assert up.get_xlabel() == "Uploaded by all clients (MB)"


def test_bars_of_a_target_that_nobody_reaches_are_words_alone(three_seeds: Path) -> None:
    found = gather([three_seeds], ("accuracy", 0.99), None)
    up, _ = draw_target(found.rows, "accuracy", 0.99).axes
    assert [text.get_text() for text in up.texts] == ["not reached"]
    assert not up.patches


def test_labels_of_bars_are_whole_however_long(tmp_path: Path) -> None:
    """Two of them may differ at their ends alone."""
    names = [f"FLASC of a name that is longer than the room beside its bar, and differs at its end {i}" for i in (1, 2)]
    for name in names:
        write_run(tmp_path / name[-1], name, [0.1, 0.9])
    panel = draw_target(gather([tmp_path], ("accuracy", 0.8), None).rows, "accuracy", 0.8).axes[0]
    assert [" ".join(label.get_text().split()) for label in panel.get_yticklabels()] == names


@pytest.mark.usefixtures("pictures")
def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    write_run(tmp_path / "a", r"LoRA $\nothing{$ 5", [0.1, 0.9])
    report([tmp_path], ("accuracy", 0.8), None, quiet())


def test_two_curves_never_look_alike() -> None:
    looks = {(i % len(COLOURS), i % len(MARKERS), i % len(LINES)) for i in range(60)}
    assert len(looks) == 60


@pytest.mark.parametrize("text", ["accuracy", "=0.8", "accuracy=", "accuracy=high", "accuracy=nan", ""])
def test_a_target_that_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected NAME=VALUE"):
        parse_target(text)


def test_targets() -> None:
    assert parse_target("accuracy=0.8") == ("accuracy", 0.8)
    assert parse_target("full/loss=1e-1") == ("full/loss", 0.1)
    with pytest.raises(ConfigurationError, match=r"did you mean accuracy=0\.8\?"):
        parse_target("accuracy=80")


def test_a_misspelt_target_metric_is_answered_with_near_matches(three_seeds: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown metric 'acuracy'; did you mean accuracy"):
        report([three_seeds], ("acuracy", 0.8), None, quiet())
    assert not (three_seeds / "report.md").exists()


def test_runs_without_a_common_metric_are_refused_but_for_a_target(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "LoRA", [0.1, 0.5], better={"accuracy": True})
    write_run(tmp_path / "b", "GPT", [0.1, 0.5], better={"perplexity": False})
    with pytest.raises(ConfigurationError, match=r"no metric in common: .*a has accuracy, .*b has perplexity"):
        report([tmp_path], None, None, quiet())
    console = quiet()
    assert list(table(report([tmp_path], ("perplexity", 1.0), None, console))) == ["GPT"]
    assert f"left out, no perplexity: {tmp_path / 'a'}" in console.file.getvalue()  # type: ignore[attr-defined]


def test_files_beside_the_runs_of_a_sweep_are_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s0", "LoRA", [0.1])
    beside = [tmp_path / name for name in ("sweep.csv", "optuna.db", "optuna.db-journal", "report.md")]
    for path in beside:
        path.touch()
    assert find_runs([run, *beside]) == ([run], [])


def test_paths_that_hold_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere does not exist"):
        report([tmp_path / "nowhere"], None, None, quiet())
    with pytest.raises(ConfigurationError, match="no run in"):
        report([tmp_path], None, None, quiet())
    write_run(tmp_path / "killed", "LoRA", [0.1], finished=False)
    with pytest.raises(ConfigurationError, match=r"no finished run in .*killed: summary.json is missing"):
        report([tmp_path], None, None, quiet())


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (3, "1,x,2,1,2,0.5,0.5,1", "line 3: upload_bytes is 'x', expected a whole number"),
        (3, "1,1,2,1,2,high,0.5,1", "line 3: accuracy is 'high', expected a number"),
        (4, "2,2,4", "line 4: 3 cells, expected 8"),
        (4, "1,2,4,2,4,0.5,0.5,1", "line 4: round 1 after 1, expected it to rise"),
        (4, "2,0,4,2,4,0.5,0.5,1", "line 4: upload_bytes 0 after 1000000, expected it to rise"),
        (1, HEADER.replace("loss", "accuracy"), "line 1: a column twice"),
        (1, "round,accuracy", "line 1: no column upload_bytes, download_bytes"),
    ],
)
def test_a_broken_metrics_file_is_named_with_its_line(tmp_path: Path, line: int, text: str, message: str) -> None:
    file = write_run(tmp_path / "a", "LoRA", [0.1, 0.2, 0.3]) / "metrics.csv"
    lines = file.read_text().splitlines()
    lines[line - 1] = text
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigurationError) as caught:
        report([tmp_path], None, None, quiet())
    assert str(caught.value) == f"{file} {message}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", '{"name":\n', "summary.json line 2: not JSON"),
        ("summary.json", '{"name": "LoRA"}', "summary.json: no key 'seed' of type int"),
        ("config.yaml", "a: 1\nb: [1\n", "config.yaml line 3: not YAML"),
        ("metrics.csv", HEADER + "\n", "metrics.csv: no evaluation, only a header"),
        ("metrics.csv", "\udc80", "cannot read the run"),
        ("metrics.csv", "", "metrics.csv line 1: no column round"),
    ],
)
def test_other_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (write_run(tmp_path / "a", "LoRA", [0.1, 0.2]) / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=message) as caught:
        report([tmp_path], None, None, quiet())
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_a_configuration_error(three_seeds: Path) -> None:
    (three_seeds / "taken").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write to .*taken .*--out DIR"):
        report([three_seeds], None, three_seeds / "taken", quiet())


def test_the_table_fits_a_terminal_of_80_columns(three_seeds: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    write_run(three_seeds / "d", "SparseAdapter", [0.1, 0.5])
    report([three_seeds], ("accuracy", 0.8), None, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for whole in ("SparseAdapter", "(60.0–90.0)", "not reached", "to 80 %"):
        assert whole in text


def test_report_starts_without_the_heavy_libraries() -> None:
    code = (
        "import sys, launch.reports.report; "
        "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
