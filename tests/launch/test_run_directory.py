"""Which directory a run takes, who may write there, and what can go on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedsim.checkpoint import Checkpoint, save_checkpoint
from fedsim.errors import ConfigurationError
from launch.run_directory import RunDirectory

RESOLVED: dict[str, Any] = {
    "method": {"class_path": "methods.flasc.FLASC", "init_args": {"upload_density": 0.25}},
    "client": {"lr": 0.1},
    "rounds": 4,
    "seed": 0,
    "checkpoint_every_rounds": 2,
}


def open_run(path: Path | None, resume: bool = False, **changes: Any) -> RunDirectory:
    return RunDirectory.open(path, "FLASC-Digits-s0", resume, RESOLVED | changes)


def stopped_run(path: Path, *rounds: int) -> Path:
    """A run that left checkpoints of these rounds."""
    with open_run(path) as directory:
        directory.begin(RESOLVED)
        for round in rounds:
            save_checkpoint(path / "checkpoint", Checkpoint(round, {"vector": torch.ones(3)}, {"history": round}))
    return path


def finish(path: Path) -> Path:
    (path / "summary.json").write_text(json.dumps({"rounds": RESOLVED["rounds"]}))
    return path


def test_without_a_directory_the_first_free_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    taken = []
    for _ in range(2):
        with open_run(None) as directory:
            taken.append(str(directory.path))
    (tmp_path / "runs" / "FLASC-Digits-s0-2").write_text("a file takes a name, too")
    (tmp_path / "runs" / "FLASC-Digits-s0-4").mkdir()
    with open_run(None) as directory:
        taken.append(str(directory.path))
    assert taken == [f"runs/FLASC-Digits-s0-{number}" for number in (0, 1, 3)]


def test_two_runs_that_start_at_once_take_two_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory itself is the claim: between the look for a free name and the lock there is no gap."""
    monkeypatch.chdir(tmp_path)
    with open_run(None) as first, open_run(None) as second:
        assert [str(found.path) for found in (first, second)] == ["runs/FLASC-Digits-s0-0", "runs/FLASC-Digits-s0-1"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_where_runs_cannot_be_made_the_user_is_asked_for_a_directory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        Path("runs").write_text("")
    else:
        Path("runs").symlink_to("nowhere")
    with pytest.raises(ConfigurationError, match=r"runs/FLASC-Digits-s0-0 cannot be made \(.*\); give --run_dir"):
        open_run(None)


def test_a_new_directory_holds_the_settings_and_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with open_run(path) as directory:
        assert (directory.path, directory.checkpoint, directory.notes) == (path, None, [])
        assert [entry.name for entry in path.iterdir()] == [".lock"]
        directory.begin(RESOLVED)
        assert yaml.safe_load((path / "config.yaml").read_text()) == RESOLVED


def test_an_empty_directory_is_as_good_as_a_new_one(tmp_path: Path) -> None:
    with open_run(tmp_path, resume=True) as directory:
        assert directory.checkpoint is None


def test_hidden_files_make_no_directory_foreign(tmp_path: Path) -> None:
    """A file browser or a version control leaves them anywhere."""
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / ".git").mkdir()
    with open_run(tmp_path) as directory:
        assert (directory.checkpoint, directory.notes) == (None, [])
    assert (tmp_path / ".git").is_dir()


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    with open_run(tmp_path):
        for resume in (True, False):
            with pytest.raises(ConfigurationError, match="is in use by another run"):
                open_run(tmp_path, resume)
    with open_run(tmp_path, resume=True):
        pass


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    def fail_after_beginning() -> None:
        with open_run(tmp_path) as directory:
            directory.begin(RESOLVED)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_beginning()
    for changes in ({"seed": 1}, {"client": {"lr": 0.2}}):
        with pytest.raises(ConfigurationError, match="other settings"):
            open_run(tmp_path, resume=True, **changes)
    with pytest.raises(ConfigurationError, match="unfinished"):
        open_run(tmp_path)
    directory = open_run(tmp_path, resume=True)
    directory.release()
    with open_run(tmp_path, resume=True) as directory:
        assert directory.checkpoint is None


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    dies = "import os, sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire(); os._exit(1)"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(RESOLVED))
    subprocess.run([sys.executable, "-c", dies, str(tmp_path / ".lock")], check=False)
    assert (tmp_path / ".lock").exists()
    with open_run(tmp_path, resume=True):
        pass


def test_a_finished_run_stays_unless_it_gets_more_rounds(tmp_path: Path) -> None:
    path = finish(stopped_run(tmp_path / "run", 2, 4))
    with pytest.raises(ConfigurationError, match="holds a finished run; choose another run_dir"):
        open_run(path)
    with pytest.raises(ConfigurationError, match="finished run of 4 rounds; give more rounds"):
        open_run(path, resume=True)
    assert (path / "summary.json").exists()
    with pytest.raises(ConfigurationError, match="at round 4; rounds is 3"):
        open_run(path, resume=True, rounds=3)
    with open_run(path, resume=True, rounds=6) as directory:
        assert directory.checkpoint is not None
        assert directory.checkpoint.round == 4
        assert (path / "summary.json").exists()
        assert yaml.safe_load((path / "config.yaml").read_text()) == RESOLVED
        directory.begin(RESOLVED | {"rounds": 6})
        assert not (path / "summary.json").exists()
        assert yaml.safe_load((path / "config.yaml").read_text())["rounds"] == 6


def test_a_finished_run_that_lost_its_checkpoints_is_not_run_anew(tmp_path: Path) -> None:
    path = finish(stopped_run(tmp_path / "run"))
    with pytest.raises(ConfigurationError, match="finished run of 4 rounds"):
        open_run(path, resume=True)
    with pytest.raises(ConfigurationError, match="finished run without a checkpoint; choose another run_dir"):
        open_run(path, resume=True, rounds=6)
    assert (path / "summary.json").exists()


def test_an_unfinished_run_without_a_checkpoint_starts_anew_and_says_so(tmp_path: Path) -> None:
    with open_run(stopped_run(tmp_path / "run"), resume=True) as directory:
        assert directory.checkpoint is None
        assert directory.notes == [f"run_dir {tmp_path / 'run'} holds no checkpoint yet; the run starts anew"]


def test_an_unfinished_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    path = stopped_run(tmp_path / "run", 1, 2, 3)
    with pytest.raises(ConfigurationError, match=r"unfinished run \(go on with --resume auto"):
        open_run(path)
    with open_run(path, resume=True, checkpoint_every_rounds=1) as directory:
        assert directory.checkpoint is not None
        assert (directory.checkpoint.round, directory.checkpoint.meta) == (3, {"history": 3})
        assert torch.equal(directory.checkpoint.tensors["vector"], torch.ones(3))
        assert directory.notes == []


def test_a_run_that_stopped_after_its_last_round_is_finished_without_training(tmp_path: Path) -> None:
    with open_run(stopped_run(tmp_path / "run", 4), resume=True) as directory:
        assert directory.checkpoint is not None
        assert directory.checkpoint.round == 4


def test_fewer_rounds_than_done_are_refused(tmp_path: Path) -> None:
    path = stopped_run(tmp_path / "run", 3)
    with pytest.raises(ConfigurationError, match="is at round 3; rounds is 2, give 3 or more"):
        open_run(path, resume=True, rounds=2)


def test_a_damaged_checkpoint_is_passed_over_with_a_note(tmp_path: Path) -> None:
    path = stopped_run(tmp_path / "run", 2, 3)
    damaged = path / "checkpoint" / "round-000003" / "state.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with open_run(path, resume=True) as directory:
        assert directory.checkpoint is not None
        assert directory.checkpoint.round == 2
        (note,) = directory.notes
    assert "round-000003" in note
    assert "damaged" in note


def test_other_settings_are_named_by_key_with_both_values(tmp_path: Path) -> None:
    path = stopped_run(tmp_path / "run", 2)
    method = {"class_path": "methods.flasc.FLASC", "init_args": {"upload_density": 0.5}}
    with pytest.raises(ConfigurationError) as error:
        open_run(path, resume=True, method=method, precision="64-true")
    changes = "method.upload_density was 0.25 and is 0.5, precision was None and is 64-true"
    assert f"other settings ({changes}); give the former, or another run_dir" in str(error.value)
    assert yaml.safe_load((path / "config.yaml").read_text()) == RESOLVED


@pytest.mark.parametrize("text", ["method: [", "- 1\n", ""], ids=["broken", "a list", "empty"])
def test_a_broken_config_is_refused_and_stays(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"config\.yaml cannot be read"):
        open_run(tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_text() == text


def test_a_foreign_directory_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    for resume in (True, False):
        with pytest.raises(ConfigurationError, match="no run"):
            open_run(tmp_path, resume)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(Permission denied"):
        open_run(tmp_path / "run")
