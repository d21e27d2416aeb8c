"""The audit of privacy passes what holds, and fails what does not."""

import numpy as np
import pytest
from scipy import stats

from launch.audit_privacy import audit, gaussian_epsilon, least_epsilon, main


@pytest.mark.parametrize(("sabotage", "status"), [("none", 0), ("noise", 1), ("clip", 1)])
def test_the_audit_finds_half_the_noise_and_a_missing_clip(
    sabotage: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--trials", "2000", "--rounds", "2", "--sabotage", sabotage]) == status
    assert ("FAILED" in capsys.readouterr().out) == bool(status)


def test_a_true_claim_is_bounded_from_below_and_not_by_nothing() -> None:
    verdict = audit(1.5, 2, 3, 2000, 1)
    assert 1.45 < verdict.claimed <= 1.5
    assert 0.5 < verdict.bound <= verdict.claimed


def test_epsilon_of_a_gaussian_is_that_of_its_definition() -> None:
    """delta = the most that one distribution exceeds e^epsilon times the other, integrated."""
    for separation, epsilon in ((0.4, 1.0), (1.0, 2.0), (3.0, 8.0)):
        at = np.linspace(-15, 20, 700_001)
        excess = stats.norm.pdf(at - separation) - np.exp(epsilon) * stats.norm.pdf(at)
        delta = float(np.trapezoid(np.maximum(excess, 0), at))
        assert gaussian_epsilon(separation, delta) == pytest.approx(epsilon, rel=1e-4)
    assert gaussian_epsilon(0.01, 0.5) == 0


def test_a_bound_is_wrong_in_at_most_a_twentieth_of_audits() -> None:
    """Counts drawn from a Gaussian mechanism itself, 300 audits of 1,000 trials a case."""
    random, separation, trials = np.random.default_rng(0), 0.4, 1000
    true = gaussian_epsilon(separation, 1e-5)
    hits = random.binomial(trials, stats.norm.cdf(separation / 2), 300)
    alarms = random.binomial(trials, stats.norm.cdf(-separation / 2), 300)
    wrong = np.mean([least_epsilon(int(h), int(a), trials, 1e-5) > true for h, a in zip(hits, alarms, strict=True)])
    assert wrong <= 0.05
    assert least_epsilon(0, 0, 10, 1e-5) == 0
    assert least_epsilon(10, 10, 10, 1e-5) == 0
