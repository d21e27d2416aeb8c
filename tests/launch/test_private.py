"""What privacy's keys come to: refusals, noise, rounds, the secret, and what is said of it."""

import json
import math
import re
import secrets
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.accounting import Accountant
from fedsim.errors import ConfigurationError
from fedsim.options import PrivacyOptions, RunOptions
from launch import private
from launch.__main__ import main
from launch.private import promise, settle, summary_of
from launch.secret import SECRET, agree_on_secret
from methods.fed_it import FedIT
from methods.lora import LoRA
from tests.tiny import ONE_WORKER

RUN = RunOptions(rounds=20, cohort_size=10, cohort_sampling="poisson")
SHORT = (
    *("--config", "dp_digits", "--data", "tests.battery.FewDigits", "--partition.clients", "8"),
    *("--cohort_size", "4", "--privacy.noise_from", "seed", "--evaluate_every_rounds", "2"),
    *("--privacy.accountant", "rdp"),
)


def settled(run: RunOptions = RUN, population: int = 100, **keys: Any) -> private.Private:
    whole = {"clip": 0.5, "delta": 1e-3, "accountant": "rdp"} | keys  # the quick one
    return settle(PrivacyOptions(**whole), LoRA(), run, population)


def mechanism_of(**keys: Any) -> private.Mechanism:
    mechanism = settled(**keys).mechanism
    assert mechanism is not None
    return mechanism


def test_without_a_clip_nothing_is_private() -> None:
    assert settle(PrivacyOptions(), LoRA(), RUN, 100) == private.Private(None, RUN, None)


def test_noise_is_found_for_a_budget_and_all_rounds() -> None:
    made = settled(epsilon=4.0)
    mechanism = made.mechanism
    assert mechanism is not None
    assert made.run.rounds == 20
    assert mechanism.noise_multiplier == made.noise_multiplier
    assert 3.9 < mechanism.accountant.epsilon(20) <= 4
    assert mechanism.accountant.epsilon(21) > 4
    assert mechanism.accountant == Accountant("rdp", "poisson", 10, 100, mechanism.noise_multiplier, 1e-3)


@pytest.mark.parametrize(("sampling", "accountant"), [("poisson", "pld"), ("without_replacement", "rdp")])
def test_the_accountant_is_the_tightest_there_is(sampling: str, accountant: str) -> None:
    made = settled(run=replace(RUN, cohort_sampling=sampling), noise_multiplier=1.0, accountant=None).mechanism  # type: ignore[arg-type]
    assert made is not None
    assert made.accountant == Accountant(accountant, sampling, 10, 100, 1.0, 1e-3)  # type: ignore[arg-type]


def test_a_run_ends_with_the_last_round_that_keeps_its_budget() -> None:
    costs = Accountant("rdp", "poisson", 10, 100, 1.0, 1e-3)
    made = settled(noise_multiplier=1.0, epsilon=costs.epsilon(7) + 1e-6)
    assert made.run.rounds == 7
    assert made.notes[0] == "privacy.epsilon is spent after 7 of 20 rounds, with which the run ends"
    with pytest.raises(ConfigurationError, match=r"one round of noise_multiplier 0\.1 costs .*; give more noise"):
        settled(noise_multiplier=0.1, epsilon=0.5)


def test_a_simulated_cohorts_noise_is_scaled_down_and_both_epsilons_are_told() -> None:
    """By 10 / 1,000: the deviation of the mean is that of the large cohort; the true epsilon is of what really runs."""
    mechanism = mechanism_of(noise_multiplier=1.3, simulated_cohort=1000, simulated_population=32000)
    assert mechanism.noise_multiplier == pytest.approx(0.013)
    assert mechanism.accountant == Accountant("rdp", "poisson", 10, 100, mechanism.noise_multiplier, 1e-3)
    assert mechanism.simulated == Accountant("rdp", "poisson", 1000, 32000, 1.3, 1e-3)
    true, simulated = promise(mechanism, 20)
    assert true.startswith("true privacy: epsilon ")
    assert simulated.startswith("simulated, which this run does not have: epsilon ")
    told = summary_of(PrivacyOptions(clip=0.5), mechanism, 20)
    assert told["epsilon"] == mechanism.accountant.epsilon(20) > 100 * told["simulated"]["epsilon"]
    assert told["noise_multiplier"] == pytest.approx(0.013)
    assert told["simulated"]["noise_multiplier"] == 1.3


def test_a_budget_is_of_the_simulated_cohort() -> None:
    mechanism = mechanism_of(epsilon=2.0, simulated_cohort=50)
    assert mechanism.simulated is not None
    assert mechanism.simulated.epsilon(20) <= 2 < mechanism.accountant.epsilon(20)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"simulated_cohort": 101}, "privacy.simulated_cohort is 101, out of 100 clients"),
        ({"simulated_cohort": 5}, "privacy.simulated_cohort is 5, below cohort_size 10"),
        (
            {"simulated_cohort": 20, "simulated_population": 50},
            "privacy.simulated_population is 50, below the 100 clients",
        ),
    ],
)
def test_a_simulated_cohort_must_be_one(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        settled(noise_multiplier=1.0, **keys)


def test_an_adaptive_clip_costs_what_a_fixed_one_would() -> None:
    """z^-2 = z_update^-2 + (2 sigma_b)^-2 (Andrew et al. 2021, Theorem 1), before and after scaling."""
    for keys, scale in (({}, 1.0), ({"simulated_cohort": 50}, 0.2)):
        fixed = mechanism_of(noise_multiplier=1.0, **keys)
        moving = mechanism_of(noise_multiplier=1.0, clip_quantile=0.5, clip_count_noise=3.0, **keys)
        assert moving.adaptive is not None
        assert moving.accountant == fixed.accountant
        assert moving.adaptive.count_noise == pytest.approx(3.0 * scale)
        together = moving.noise_multiplier**-2 + (2 * moving.adaptive.count_noise) ** -2
        assert together**-0.5 == pytest.approx(fixed.noise_multiplier)
        assert moving.noise_multiplier > fixed.noise_multiplier


def test_a_method_that_takes_over_the_sum_is_given_the_sum() -> None:
    for method, normalize in ((LoRA(), True), (FedIT(weighting="uniform"), False)):
        mechanism = settle(PrivacyOptions(clip=0.5, delta=1e-3), method, RUN, 100).mechanism
        assert mechanism is not None
        assert mechanism.normalize == normalize


def test_delta_is_below_one_over_the_clients() -> None:
    assert mechanism_of(delta=None).accountant.delta == pytest.approx(100**-1.1)
    with pytest.raises(ConfigurationError, match=r"privacy\.delta of 1 client would be 1"):
        settled(delta=None, population=1, run=replace(RUN, cohort_size=1))


def test_what_makes_an_epsilon_worth_less_is_said() -> None:
    assert not [note for note in settled(noise_multiplier=1.0).notes if not note.startswith("private: ")]
    open_noise = settled(noise_multiplier=1.0, noise_from="seed").notes[-1]
    assert open_noise.startswith("noise comes from the seed")
    assert settled(noise_multiplier=1.0, delta=0.01).notes[-1].startswith("privacy.delta is 0.01, not below 1 / 100: ")
    spent = settled(noise_multiplier=1.0, epsilon=4.0, simulated_cohort=50).notes[0]
    assert spent.startswith("privacy.epsilon, the simulated one, is spent after ")


def test_no_noise_is_no_privacy_and_null_in_the_summary() -> None:
    mechanism = mechanism_of()
    assert mechanism.noise_multiplier == 0
    assert promise(mechanism, 3) == ("private: no; there is no noise, so that epsilon has no bound",)
    told = summary_of(PrivacyOptions(clip=0.5), mechanism, 3)
    assert told["epsilon"] is None
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_secret_is_drawn_once_for_the_owners_eyes(tmp_path: Path) -> None:
    system = PrivacyOptions(clip=0.5)
    first = agree_on_secret(system, tmp_path, ONE_WORKER)
    file = tmp_path / "checkpoint" / SECRET
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first == agree_on_secret(system, tmp_path, ONE_WORKER) == int(file.read_text(), 16)
    assert first != agree_on_secret(system, tmp_path / "other", ONE_WORKER)
    assert agree_on_secret(PrivacyOptions(), tmp_path, ONE_WORKER) is None
    assert agree_on_secret(replace(system, noise_from="seed"), tmp_path, ONE_WORKER) is None
    for damaged in ("", "12", "x" * 32, "-" + "1" * 31):
        file.write_text(damaged)
        with pytest.raises(ConfigurationError, match=r"noise\.key is damaged"):
            agree_on_secret(system, tmp_path, ONE_WORKER)


def resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said to who would go on with the run there; refused, and nothing written."""
    folder = tmp_path / "run"
    before = (folder / "config.yaml").read_text()
    options = ["run", *SHORT, "--privacy.noise_from", "system", "--rounds", "2", "--run_dir", str(folder)]
    assert main([*options, "--resume", "auto"]) == 2
    assert (folder / "config.yaml").read_text() == before
    return " ".join(capsys.readouterr().err.split())


def test_nobody_goes_on_without_the_secret_or_with_noise_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new secret would blur the rounds behind the checkpoint a second time."""
    options = ["run", *SHORT, "--privacy.noise_from", "system", "--rounds", "1", "--run_dir", str(tmp_path / "run")]
    assert main(options) == 0
    key, config = tmp_path / "run" / "checkpoint" / SECRET, tmp_path / "run" / "config.yaml"
    secret, settings = key.read_text(), config.read_text()
    key.unlink()
    assert "noise.key is missing" in resumed(tmp_path, capsys)
    assert not key.exists()
    key.write_text("12")
    assert "noise.key is damaged" in resumed(tmp_path, capsys)
    key.write_text(secret)
    for bad in ("abc", ".nan"):
        config.write_text(re.sub(r"noise_multiplier: .*", f"noise_multiplier: {bad}", settings))
        assert "cannot be resumed with other settings (privacy.noise_multiplier was" in resumed(tmp_path, capsys)
    config.write_text("a: [")
    assert "config.yaml cannot be read" in resumed(tmp_path, capsys)


REFUSED = [
    (("--privacy.noise_multiplier", "1", "--privacy.clip", "null"), "privacy.noise_multiplier is 1.0; expected null"),
    (("--server.weighting", "examples"), "privacy.clip is given with server.weighting examples: "),
    (("--on_bad_client", "fail"), "privacy.clip is given with on_bad_client fail: "),
    (
        ("--communication.error_feedback", "true", "--cohort_sampling", "without_replacement"),
        "privacy.clip is given with communication.error_feedback: ",
    ),
    (
        ("--method", "HetLoRA", "--method.rank_decay", "0.9", "--cohort_sampling", "without_replacement"),
        "privacy.clip is given, but what clients of HetLoRA ",
    ),
    (("--privacy.accountant", "pld", "--cohort_sampling", "without_replacement"), "privacy.accountant is pld, which"),
    (("--method", "FLoRANA"), "privacy.clip is given, but FLoRANA cannot be private: its server makes more"),
    (("--privacy.delta", "1"), "privacy.delta is 1.0; expected a number in (0, 1), or null"),
    (("--privacy.clip", "0"), "privacy.clip is 0.0; expected a number above 0, or null"),
    (("--privacy.clip_quantile", "2"), "privacy.clip_quantile is 2.0; expected in [0, 1], or null"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_what_would_not_hold_is_refused_before_anything_is_written(
    options: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *SHORT, *options, "--run_dir", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def read(folder: Path) -> tuple[dict[str, Any], list[str]]:
    return json.loads((folder / "summary.json").read_text()), (folder / "metrics.csv").read_text().splitlines()


def test_a_run_prints_its_epsilon_before_and_after_and_has_it_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["run", *SHORT, "--rounds", "4", "--run_dir", str(folder)]) == 0
    said = capsys.readouterr().out
    before, after = (re.findall(rf"^{word}private: epsilon ([\d.]+) at", said, re.M) for word in ("", "spent, "))
    assert len(before) == len(after) == 1
    summary, rows = read(folder)
    assert summary["privacy"]["epsilon"] == pytest.approx(float(after[0]), rel=1e-3)
    assert float(before[0]) == float(after[0]) <= 8
    assert summary["privacy"]["noise_from"] == "seed"
    column = rows[0].split(",").index("privacy/epsilon")
    spent = [float(row.split(",")[column]) for row in rows[1:]]
    assert spent == sorted(spent)
    assert spent[0] == 0
    assert spent[-1] == pytest.approx(summary["privacy"]["epsilon"])
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["privacy"]["noise_multiplier"] == summary["privacy"]["noise_multiplier"]


def test_a_private_run_goes_on_with_its_noise_and_its_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind round 2 of 4 and resumed, with noise and cohorts of the system: the bits of one that was not; and
    other secrets give other bits."""
    monkeypatch.setattr(secrets, "randbits", lambda bits: 12345)
    options = ["run", *SHORT, "--privacy.noise_from", "system", "--privacy.noise_multiplier", "1.0"]
    options += ["--checkpoint_every_rounds", "2", "--privacy.epsilon", "null", "--privacy.clip_quantile", "0.5"]
    options += ["--privacy.clip_count_noise", "2.0"]
    whole, parts, other = tmp_path / "whole", tmp_path / "parts", tmp_path / "other"
    assert main([*options, "--rounds", "4", "--run_dir", str(whole)]) == 0
    assert main([*options, "--rounds", "2", "--run_dir", str(parts)]) == 0
    monkeypatch.setattr(secrets, "randbits", lambda bits: 54321)
    assert main([*options, "--rounds", "4", "--run_dir", str(parts), "--resume", "auto"]) == 0
    assert main([*options, "--rounds", "4", "--run_dir", str(other)]) == 0
    seconds = read(whole)[1][0].split(",").index("seconds")
    bits = [
        [row.split(",")[:seconds] + row.split(",")[seconds + 1 :] for row in read(folder)[1]]
        for folder in (whole, parts, other)
    ]
    assert bits[0] == bits[1] != bits[2]
    assert (whole / "ledger.csv").read_text() == (parts / "ledger.csv").read_text()
    assert (whole / "ledger.csv").read_text() != (other / "ledger.csv").read_text(), "the same cohorts"


def test_more_rounds_than_the_budget_has_end_early_and_are_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    cost = Accountant("rdp", "poisson", 4, 8, 1.5, 1e-3).epsilon(3)
    budget = ["--privacy.noise_multiplier", "1.5", "--privacy.epsilon", str(cost + 1e-6), "--rounds", "6"]
    assert main(["run", *SHORT, *budget, "--run_dir", str(folder)]) == 0
    assert "privacy.epsilon is spent after 3 of 6 rounds" in capsys.readouterr().out.replace("\n", " ")
    summary, rows = read(folder)
    assert summary["rounds"] == 3 == int(rows[-1].split(",")[0])
    assert math.isclose(summary["privacy"]["epsilon"], cost)
