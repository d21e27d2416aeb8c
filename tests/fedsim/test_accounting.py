"""Epsilons against dp-accounting's own, plain twins of both RDP bounds, published numbers, and pairs of neighbours."""

import math
from dataclasses import replace
from functools import cache
from itertools import product

import dp_accounting
import mpmath
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.stats import norm

from fedsim.accounting import Accountant, AccountantName, Sampling, noise_for, update_noise_multiplier
from fedsim.errors import ConfigurationError

POISSON = Accountant("rdp", "poisson", 100, 10_000, 1.0, 1e-5)
PLD = replace(POISSON, kind="pld")
REPLACING = replace(POISSON, sampling="without_replacement")
WAYS: list[tuple[AccountantName, Sampling]] = [
    ("rdp", "poisson"),
    ("pld", "poisson"),
    ("rdp", "without_replacement"),
]
THREE_DIGITS = 5e-4


def event(sampling: Sampling, cohort: int, population: int, noise: float) -> dp_accounting.DpEvent:
    """One round as dp-accounting calls it: noise over how far neighbours' sums may be apart."""
    if sampling == "poisson":
        return dp_accounting.PoissonSampledDpEvent(cohort / population, dp_accounting.GaussianDpEvent(noise))
    return dp_accounting.SampledWithoutReplacementDpEvent(population, cohort, dp_accounting.GaussianDpEvent(noise / 2))


def fresh(kind: AccountantName, sampling: Sampling) -> dp_accounting.PrivacyAccountant:
    relations = dp_accounting.NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE if sampling == "poisson" else relations.REPLACE_ONE
    return (rdp.RdpAccountant if kind == "rdp" else pld.PLDAccountant)(neighboring_relation=relation)


def log_moment_of_poisson(order: int, q: float, noise: float) -> mpmath.mpf:
    """Mironov, Talwar and Zhang 2019, section 3.3: the binomial sum, with 50 digits."""
    terms = (
        mpmath.binomial(order, k) * (1 - q) ** (order - k) * q**k * mpmath.exp((k * k - k) / (2 * noise**2))
        for k in range(order + 1)
    )
    return mpmath.log(mpmath.fsum(terms))


def log_moment_without_replacement(order: int, q: float, distance: float) -> mpmath.mpf:
    """Wang, Balle and Kasiviswanathan 2019, Theorem 27, with 50 digits: noise over distance starts the bound."""

    def renyi(j: int) -> mpmath.mpf:
        return mpmath.mpf(j) / (2 * mpmath.mpf(distance) ** 2)

    @cache
    def moment(size: int) -> mpmath.mpf:
        return mpmath.fsum(
            (-1) ** (size - i) * mpmath.binomial(size, i) * mpmath.exp((i - 1) * renyi(i)) for i in range(size + 1)
        )

    total = 1 + mpmath.binomial(order, 2) * q**2 * min(4 * mpmath.expm1(renyi(2)), 2 * mpmath.exp(renyi(2)))
    for j in range(3, order + 1):
        pair = moment(2 * (j // 2)) * moment(2 * -(-j // 2))
        bound = min(4 * mpmath.sqrt(pair), 2 * mpmath.exp((j - 1) * renyi(j)))
        total += mpmath.binomial(order, j) * mpmath.mpf(q) ** j * bound
    return mpmath.log(total)


def epsilon_of(moments: dict[int, mpmath.mpf], rounds: int, delta: float) -> float:
    """Canonne, Kamath and Steinke 2020, Proposition 12, least over the orders."""
    return float(
        min(
            rounds * moment / (a - 1) + mpmath.log1p(mpmath.mpf(-1) / a) - mpmath.log(delta * a) / (a - 1)
            for a, moment in moments.items()
        )
    )


def delta_of_replacing(epsilon: float, q: float, noise: float) -> float:
    """The delta of one round for two populations that differ in one client: its update is u in one, -u in the other.

    All others are 0, and u is one clip long. Along u the sum is then noise around 0, or with probability q around 1 in
    one and -1 in the other; integrated by hand.
    """

    def excess(x: float) -> float:
        rest = (1 - q) * norm.pdf(x, 0, noise)
        here, there = rest + q * norm.pdf(x, 1, noise), rest + q * norm.pdf(x, -1, noise)
        return max(0.0, here - math.exp(epsilon) * there)

    return integrate.quad(excess, -1, 1 + 12 * noise, limit=500, points=[0, 1])[0]


@pytest.mark.parametrize(("kind", "sampling"), WAYS)
@pytest.mark.parametrize(
    ("cohort", "population", "noise", "rounds"),
    [(100, 10_000, 1.0, 100), (10, 10_000_000, 0.8, 5000), (50, 200, 4.0, 300), (100, 200, 3.0, 1)],
)
def test_epsilon_is_dp_accountings_own(
    kind: AccountantName, sampling: Sampling, cohort: int, population: int, noise: float, rounds: int
) -> None:
    theirs = fresh(kind, sampling).compose(event(sampling, cohort, population, noise), rounds)
    for delta in (1e-8, 1e-5):
        ours = Accountant(kind, sampling, cohort, population, noise, delta)
        assert ours.epsilon(rounds) == pytest.approx(theirs.get_epsilon(delta), rel=THREE_DIGITS)


@pytest.mark.parametrize(("kind", "sampling"), WAYS)
def test_where_everybody_takes_part_a_round_is_a_plain_gaussian(kind: AccountantName, sampling: Sampling) -> None:
    ours = Accountant(kind, sampling, 40, 40, 12.0, 1e-5)
    plain = dp_accounting.GaussianDpEvent(12.0 / (1 if sampling == "poisson" else 2))
    theirs = fresh(kind, sampling).compose(plain, 50)
    assert ours.epsilon(50) == pytest.approx(theirs.get_epsilon(1e-5), rel=THREE_DIGITS)


def test_rdp_of_poisson_sampling_by_the_binomial_formula() -> None:
    with mpmath.workdps(50):
        moments = {order: log_moment_of_poisson(order, 0.02, 2.0) for order in range(2, 64)}
        expected = epsilon_of(moments, 400, 1e-6)
    assert Accountant("rdp", "poisson", 20, 1000, 2.0, 1e-6).epsilon(400) == pytest.approx(expected, rel=1e-3)


def test_rdp_without_replacement_by_its_theorem() -> None:
    with mpmath.workdps(50):
        moments = {order: log_moment_without_replacement(order, 0.02, 8.0 / 2) for order in range(2, 50)}
        expected = epsilon_of(moments, 100, 1e-6)
    ours = Accountant("rdp", "without_replacement", 20, 1000, 8.0, 1e-6)
    assert ours.epsilon(100) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("cohort", "population", "noise"), [(10, 10, 2.0), (10, 10, 10.0), (9, 10, 1.5)])
def test_replacing_a_client_costs_two_clips(cohort: int, population: int, noise: float) -> None:
    """A pair of neighbours shows delta kept, and broken where the noise is told over one clip instead of two."""
    ours = Accountant("rdp", "without_replacement", cohort, population, noise, 1e-5)
    q = cohort / population
    assert delta_of_replacing(ours.epsilon(1), q, noise) <= 1e-5
    one_clip = fresh("rdp", "without_replacement").compose(event("without_replacement", cohort, population, 2 * noise))
    assert delta_of_replacing(one_clip.get_epsilon(1e-5), q, noise) > 1e-5


@pytest.mark.parametrize(
    ("epsilon", "noise", "cohort", "delta"),
    [(1.0, 2.0, 10, 0.010224911209191894), (0.8, 2.0, 10, 0.022850339595771204), (1.0, 2.0, 20, 0.14991732969314892)],
)
def test_epsilons_published_by_another_accountant(epsilon: float, noise: float, cohort: int, delta: float) -> None:
    """Koskela, Jalko and Honkela's, by Fourier transform: DPBayes/PLD-Accountant, tests/test_compute_delta.py."""
    ours = Accountant("pld", "poisson", cohort, 1000, noise, delta)
    assert ours.epsilon(10_000) == pytest.approx(epsilon, rel=THREE_DIGITS)


def test_epsilon_published_by_pfl_research() -> None:
    """tests/privacy/test_adaptive_clipping.py of apple/pfl-research: PLD, 100 compositions, 1e3 of 1e8, epsilon 2."""
    ours = Accountant("pld", "poisson", 1000, 100_000_000, 0.3282815217971802, 1e-6)
    assert ours.epsilon(100) == pytest.approx(2.0, rel=THREE_DIGITS)


def test_noise_published_by_pfl_research() -> None:
    """tests/privacy/test_ftrl_mechanism.py of apple/pfl-research: PLD, 4 compositions, sampling 0.1, epsilon 2."""
    found = noise_for(2.0, 1e-6, 4, "pld", "poisson", 1, 10)
    assert found == pytest.approx(1.1713266372680664, rel=THREE_DIGITS)


@pytest.mark.parametrize(("kind", "sampling"), WAYS)
def test_noise_keeps_the_budget_and_is_the_least(kind: AccountantName, sampling: Sampling) -> None:
    noise = noise_for(0.5, 1e-5, 100, kind, sampling, 20, 1000)
    ours = Accountant(kind, sampling, 20, 1000, noise, 1e-5)
    assert 0.99 * 0.5 < ours.epsilon(100) <= 0.5
    assert replace(ours, noise_multiplier=noise * (1 - 1e-4)).epsilon(100) > 0.5


@settings(deadline=None, max_examples=5)
@given(epsilon=st.floats(0.05, 20.0), delta=st.floats(1e-10, 1e-3), rounds=st.integers(1, 5000))
def test_noise_keeps_any_budget(epsilon: float, delta: float, rounds: int) -> None:
    noise = noise_for(epsilon, delta, rounds, "rdp", "poisson", 20, 1000)
    assert 0.99 * epsilon < Accountant("rdp", "poisson", 20, 1000, noise, delta).epsilon(rounds) <= epsilon


def test_noise_keeps_the_budget_where_another_machine_rounds_otherwise() -> None:
    """Here the search ends 5e-9 from the budget: a round too many for a machine whose sums end otherwise."""
    noise = noise_for(2.0, 1e-5, 200, "rdp", "poisson", 20, 1000)
    assert Accountant("rdp", "poisson", 20, 1000, noise, 1e-5).epsilon(200) < 2 * (1 - 1e-7)


def test_noise_is_what_dp_accounting_calibrates() -> None:
    theirs = dp_accounting.calibrate_dp_mechanism(
        rdp.RdpAccountant,
        lambda noise: dp_accounting.SelfComposedDpEvent(event("poisson", 20, 1000, noise), 200),
        2.0,
        1e-5,
        dp_accounting.ExplicitBracketInterval(0.5, 5.0),
    )
    assert noise_for(2.0, 1e-5, 200, "rdp", "poisson", 20, 1000) == pytest.approx(theirs, rel=1e-4)


@settings(deadline=None, max_examples=8)
@given(
    sampling=st.sampled_from(["poisson", "without_replacement"]),
    cohort=st.integers(1, 50),
    population=st.sampled_from([200, 10_000, 50_000_000]),
    noise=st.floats(0.6, 30.0),
    rounds=st.integers(1, 10_000),
    epsilon=st.floats(0.1, 50.0),
)
def test_epsilon_rises_with_rounds_and_cohort_and_falls_with_noise(
    sampling: Sampling, cohort: int, population: int, noise: float, rounds: int, epsilon: float
) -> None:
    ours = Accountant("rdp", sampling, cohort, population, noise, 1e-6)
    spent = ours.epsilon(rounds)
    assert 0 <= spent <= ours.epsilon(2 * rounds)
    assert spent <= replace(ours, cohort=2 * cohort).epsilon(rounds) * (1 + 1e-9)
    assert spent >= replace(ours, noise_multiplier=1.5 * noise).epsilon(rounds) * (1 - 1e-9)
    most = ours.affordable(epsilon, rounds)
    assert ours.epsilon(most) <= epsilon
    assert most == rounds or ours.epsilon(most + 1) > epsilon


def test_pld_rises_with_rounds_and_cohort_and_falls_with_noise() -> None:
    spent = {
        (cohort, noise, rounds): Accountant("pld", "poisson", cohort, 1000, noise, 1e-6).epsilon(rounds)
        for cohort, noise, rounds in product((10, 20), (2.0, 3.0), (100, 200))
    }
    for (cohort, noise, rounds), epsilon in spent.items():
        assert epsilon <= spent[20, noise, rounds]
        assert epsilon <= spent[cohort, 2.0, rounds]
        assert epsilon <= spent[cohort, noise, 200]
        assert epsilon < Accountant("rdp", "poisson", cohort, 1000, noise, 1e-6).epsilon(rounds)
    assert len(set(spent.values())) == 8


@pytest.mark.parametrize("accountant", [POISSON, PLD, REPLACING])
def test_rounds_that_a_budget_pays(accountant: Accountant) -> None:
    accountant = replace(accountant, noise_multiplier=3.0)
    budget = accountant.epsilon(70)
    assert accountant.affordable(budget, 100) == 70
    assert accountant.affordable(budget, 50) == 50
    assert accountant.affordable(math.nextafter(budget, 0), 100) == 69
    assert accountant.affordable(1e-9, 100) == 0
    assert replace(accountant, noise_multiplier=0.0).affordable(budget, 100) == 0


@pytest.mark.parametrize("accountant", [POISSON, PLD, REPLACING])
def test_no_rounds_cost_nothing_and_rounds_without_noise_everything(accountant: Accountant) -> None:
    assert accountant.epsilon(0) == 0
    without = replace(accountant, noise_multiplier=0.0)
    assert without.epsilon(0) == 0
    assert without.epsilon(1) == math.inf


@pytest.mark.parametrize("accountant", [POISSON, PLD, REPLACING])
@pytest.mark.parametrize(("noise", "least", "most"), [(1e4, 0.0, 0.05), (0.05, 100.0, 1e7)])
def test_very_large_and_very_small_noise(accountant: Accountant, noise: float, least: float, most: float) -> None:
    assert least <= replace(accountant, noise_multiplier=noise).epsilon(3000) <= most


@pytest.mark.parametrize("accountant", [POISSON, PLD, REPLACING])
def test_one_client_in_a_million(accountant: Accountant) -> None:
    assert 0 < replace(accountant, cohort=1, population=1_000_000, delta=1e-9).epsilon(5000) < 3


def test_it_says_between_whom() -> None:
    assert POISSON.neighbours == PLD.neighbours == "add or remove one client"
    assert REPLACING.neighbours == "replace one client"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "without_replacement", "kind": "pld"}, "accountant is pld; expected rdp"),
        ({"cohort": 0}, "cohort of a private run is 0; expected 1 to the population of 10000"),
        ({"cohort": 10_001}, "is 10001; expected 1 to the population of 10000"),
        ({"noise_multiplier": -1.0}, "noise multiplier is -1.0; expected 0 or more"),
        ({"noise_multiplier": math.inf}, "noise multiplier is inf"),
        ({"noise_multiplier": math.nan}, "noise multiplier is nan"),
        ({"delta": 0.0}, r"delta of privacy is 0.0; expected a number in \(0, 1\)"),
        ({"delta": 1.0}, "delta of privacy is 1.0"),
    ],
)
def test_what_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(POISSON, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epsilon", "rounds", "message"),
    [
        (0.0, 10, "epsilon of privacy is 0.0; expected a number above 0"),
        (math.inf, 10, "epsilon of privacy is inf"),
        (1.0, 0, "has 0 rounds; expected 1 or more"),
        (1e-9, 10, "below what any noise keeps"),
        (1e20, 10, "kept by any noise"),
    ],
)
def test_budgets_that_are_refused(epsilon: float, rounds: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        noise_for(epsilon, 1e-5, rounds, "rdp", "poisson", 10, 1000)


def test_the_split_of_pfl_research() -> None:
    """tests/privacy/test_adaptive_clipping.py: 0.6 becomes 1.25 x 0.6 beside a bit of 1 or -1 with noise of 1."""
    assert update_noise_multiplier(0.6, 1.0 / 2) == pytest.approx(1.25 * 0.6)


@pytest.mark.parametrize("clips", [1, 2], ids=["add or remove", "replace"])
@pytest.mark.parametrize(("noise", "count_noise"), [(1.0, 5.0), (3.0, 1.6), (0.4, 100.0)])
def test_both_releases_cost_what_one_would(clips: int, noise: float, count_noise: float) -> None:
    split = update_noise_multiplier(noise, count_noise)
    assert split > noise
    both = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(split / clips), dp_accounting.GaussianDpEvent(count_noise / (clips / 2))]
    )
    one = rdp.RdpAccountant().compose(dp_accounting.GaussianDpEvent(noise / clips))
    assert rdp.RdpAccountant().compose(both).rdp == pytest.approx(one.rdp)


def test_a_count_with_too_little_noise_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"clip_count_noise is 0\.5; expected more than 0\.5"):
        update_noise_multiplier(1.0, 0.5)
    assert update_noise_multiplier(0.0, 0.5) == 0
