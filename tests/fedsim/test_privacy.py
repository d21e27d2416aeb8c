"""Clip, sum, noise: what one client changes, what the noise is, and what the server is given."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.accounting import Accountant
from fedsim.method import Arrived, Method, Plan, ServerState, Shared
from fedsim.options import RunOptions, ServerOptions
from fedsim.privacy import CLIP, AdaptiveClip, Mechanism, PrivateSum, euclidean_norm
from fedsim.seeding import Purpose, generator
from fedsim.server import restore_state, snapshot
from fedsim.sparse import SparseVector
from methods.lora import LoRA
from tests import tiny
from tests.rounds import rounds

ACCOUNTANT = Accountant("rdp", "poisson", 4, 100, 1.0, 1e-3)
FIXED = Mechanism(1.0, 0.0, 4, True, None, ACCOUNTANT)
LENGTH = 6


def stream(seed: int = 0) -> Callable[[], np.random.Generator]:
    return lambda: np.random.default_rng(seed)


def upload(values: Sequence[float], indices: Sequence[int] | None = None) -> Arrived:
    where = None if indices is None else torch.tensor(indices, dtype=torch.int64)
    length = len(values) if where is None else LENGTH
    return Arrived(0, Plan(), SparseVector(length, torch.tensor(values), where), (), 5, 7.0)


def server(length: int = LENGTH) -> ServerState:
    return tiny.server_state([0.0] * length)


def summed(
    mechanism: Mechanism,
    uploads: Sequence[Arrived],
    covered: Tensor | None = None,
    state: ServerState | None = None,
    seed: int = 0,
) -> Tensor:
    aggregate = PrivateSum(mechanism, state or server(), covered, stream(seed))
    for arrived in uploads:
        aggregate.add(arrived)
    return aggregate.finish()


def test_a_round_by_hand() -> None:
    """(3, 4) is shortened to (0.6, 0.8), (0.1, 0) is not, weights have no say, and four were expected."""
    uploads = [upload([3, 4, 0, 0, 0, 0]), upload([0.1], [0])]
    expected = torch.tensor([0.7, 0.8, 0, 0, 0, 0], dtype=torch.float64) / 4
    torch.testing.assert_close(summed(FIXED, uploads), expected, rtol=0, atol=1e-8)
    in_units = replace(FIXED, clip=10.0)
    torch.testing.assert_close(summed(in_units, uploads)[:2], torch.tensor([3.1, 4.0]).double() / 40, rtol=0, atol=1e-8)
    whole = replace(FIXED, clip=10.0, normalize=False)
    torch.testing.assert_close(summed(whole, uploads)[:2], torch.tensor([3.1, 4.0]).double() / 4, rtol=0, atol=1e-7)


def test_a_fraction_of_who_was_clipped_is_told() -> None:
    state = server()
    summed(FIXED, [upload([3.0], [0]), upload([0.5], [1]), upload([2.0], [1]), upload([1.0], [1])], state=state)
    assert state.measures == {"clip": 1.0, "clipped_fraction": 0.5}


HOSTILE = st.one_of(
    st.floats(width=32),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 1e-20]),
)
UPLOADS = st.one_of(
    st.lists(HOSTILE, min_size=LENGTH, max_size=LENGTH).map(upload),
    st.dictionaries(st.integers(0, LENGTH - 1), HOSTILE, max_size=LENGTH).map(
        lambda entries: upload([entries[i] for i in sorted(entries)], sorted(entries))
    ),
)


@settings(max_examples=300)
@given(
    cohort=st.lists(UPLOADS, max_size=6),
    one=UPLOADS,
    other=UPLOADS,
    clip=st.floats(1e-6, 1e6),
)
def test_one_client_changes_the_sum_by_at_most_a_clip_and_two_where_it_is_replaced(
    cohort: list[Arrived], one: Arrived, other: Arrived, clip: float
) -> None:
    """Whatever it sends; in units of the clip, and whether or not the sum is given back in its own."""
    for normalize in (True, False):
        mechanism = Mechanism(clip, 0.0, 1, normalize, None, ACCOUNTANT)
        most = (1.0 if normalize else clip) * (1 + 1e-6)
        without, with_one, with_other = (
            summed(mechanism, uploads) for uploads in (cohort, [*cohort, one], [*cohort, other])
        )
        assert all(bool(found.isfinite().all()) for found in (without, with_one, with_other))
        assert float((with_one - without).norm()) <= most
        assert float((with_one - with_other).norm()) <= 2 * most


def test_thousands_of_clients_before_it_round_nothing_away() -> None:
    """In float32 the sum of these would move by more than a clip and its millionth."""
    random = np.random.default_rng(1)
    crowd = [upload((1e4 + random.standard_normal(LENGTH)).tolist()) for _ in range(5000)]
    alone = upload(random.standard_normal(LENGTH).tolist())
    change = summed(replace(FIXED, cohort_size=1), [*crowd, alone]) - summed(replace(FIXED, cohort_size=1), crowd)
    assert float(change.norm()) <= 1 + 1e-9
    assert float(change.norm()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_counts_as_zero(bad: float) -> None:
    good = upload([0.5, 0.1, 0, 0, 0, 0])
    assert torch.equal(summed(FIXED, [good, upload([bad, 1, 0, 0, 0, 0])]), summed(FIXED, [good]))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=8))
def test_the_norm_does_not_overflow_and_is_the_norm(values: list[float]) -> None:
    expected = np.linalg.norm(np.array(values, dtype=np.longdouble)) if values else 0.0
    assert euclidean_norm(torch.tensor(values, dtype=torch.float32)) == pytest.approx(float(expected), rel=1e-12)
    assert euclidean_norm(torch.tensor([1e300, 1e300], dtype=torch.float64)) == pytest.approx(2**0.5 * 1e300)


def noise_of(mechanism: Mechanism, length: int, seed: int, covered: Tensor | None = None) -> np.ndarray:
    """What a round without anybody gives: noise alone, over the cohort."""
    return summed(mechanism, [], covered, server(length), seed).numpy() * mechanism.cohort_size


def test_the_noise_is_gaussian_of_the_stated_deviation_and_independent() -> None:
    """Of 2^21 + 5 values, across the pieces in which it is drawn. A deviation off by 0.5%, a mean off by 0.4% of it, or
    a correlation of 0.004 between neighbours, pieces or rounds would fail with a probability above 99.9%; a right one
    fails in one of a million draws, and this draw is a fixed one."""
    count = 2**21 + 5
    mechanism = replace(FIXED, noise_multiplier=2.5)
    first, second = (noise_of(mechanism, count, seed) / 2.5 for seed in (1, 2))
    bound = 4.9 / count**0.5
    for drawn in (first, second):
        assert abs(drawn.mean()) < bound
        assert abs(drawn.std() - 1) < bound / 2**0.5
        assert abs((drawn**4).mean() - 3) < bound * 96**0.5
        assert abs((drawn[1:] * drawn[:-1]).mean()) < bound
        assert abs((drawn[: 2**20] * drawn[2**20 : 2**21]).mean()) < bound * 2**0.5
    assert abs((first * second).mean()) < bound
    assert np.array_equal(first, noise_of(mechanism, count, 1) / 2.5)


def test_noise_stands_on_all_that_could_be_sent_and_nowhere_else() -> None:
    covered = torch.tensor([0, 2, 5])
    drawn = noise_of(replace(FIXED, noise_multiplier=1.0), LENGTH, 3, covered)
    assert drawn[covered.numpy()].all()
    assert not drawn[[1, 3, 4]].any()
    with pytest.raises(AssertionError, match="client 0 sent entries of P that get no noise"):
        summed(FIXED, [upload([1.0], [1])], covered)
    with pytest.raises(AssertionError, match="no noise"):
        summed(FIXED, [upload([1.0] * LENGTH)], covered)


def test_a_round_without_anybody_gets_noise_and_a_step() -> None:
    """Whoever looks at the server learns nothing of an empty cohort."""
    mechanism = replace(FIXED, noise_multiplier=1.0, cohort_size=1)
    run = RunOptions(rounds=40, cohort_size=1, cohort_sampling="poisson")
    last, empty = None, 0
    for played in rounds(LoRA(lora_rank=2), 40, run=run, privacy=mechanism):
        now = played.state.vector.detach().clone()
        empty += not played.trained
        assert last is None or not torch.equal(now, last)
        last = now
    assert empty > 5


def test_who_is_left_out_counts_as_zero_and_the_round_goes_on() -> None:
    """Also where all are: a run that stops would tell."""

    @dataclass
    class Broken(LoRA):
        def begin(self, job):  # type: ignore[no-untyped-def]
            return replace(job, start=job.start + float("nan"))

    (played,) = rounds(Broken(lora_rank=2), 1, privacy=replace(FIXED, noise_multiplier=0.0))
    assert played.measures["left_out_clients"] == 3
    assert torch.equal(played.state.vector.detach(), played.state.initial)


def test_the_server_is_given_the_sum_of_what_clients_really_did() -> None:
    """A round of the engine against the rule, written out: FedAvg's step by the clipped sum over the cohort."""
    mechanism = Mechanism(0.05, 0.3, 7, True, None, ACCOUNTANT)
    options = ServerOptions(optimizer="sgd", lr=1.0)
    (played,) = rounds(LoRA(lora_rank=2), 1, privacy=mechanism, server=options, secret=5)
    total = np.zeros(played.state.layout.length)
    for done in played.trained:
        update = (done.job.reference - done.vector).numpy()
        total += update / max(np.linalg.norm(update), 0.05)
    total += 0.3 * generator(5, Purpose.NOISE, 1).standard_normal(len(total))
    expected = played.state.initial.numpy() - total / 7
    np.testing.assert_allclose(played.state.vector.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_the_clip_moves_to_the_quantile() -> None:
    """Andrew et al. 2021, Algorithm 1: three of four are within it, half should be: C exp(-0.2 (3/4 - 1/2))."""
    state = server()
    mechanism = replace(FIXED, adaptive=AdaptiveClip(0.5, 0.2, 0.0))
    summed(mechanism, [upload([x], [0]) for x in (0.1, 0.2, 1.0, 3.0)], state=state)
    assert float(state.private[CLIP]) == pytest.approx(np.exp(-0.05))
    # One of an expected four arrives, and is within it: who is missing counts 1/2.
    state.private[CLIP] = torch.tensor(2.0, dtype=torch.float64)
    summed(mechanism, [upload([1.0], [0])], state=state)
    assert float(state.private[CLIP]) == pytest.approx(2 * np.exp(-0.2 * (0.5 / 4)))
    assert state.measures["clip"] == 2.0


def test_a_clip_stays_a_number_to_divide_by() -> None:
    for quantile, bound in ((0.0, 1e-30), (1.0, 1e30)):
        state = server()
        mechanism = replace(FIXED, adaptive=AdaptiveClip(quantile, 1e9, 0.0))
        for round in range(2):
            update = summed(mechanism, [upload([0.0, float(round)], [0, 1])] * 4 * (quantile == 0), state=state)
            assert bool(update.isfinite().all())
        assert float(state.private[CLIP]) == pytest.approx(bound)


def test_the_clip_finds_the_median_and_its_noise_comes_after_the_sums() -> None:
    random, state = np.random.default_rng(4), server()
    mechanism = replace(FIXED, cohort_size=40, noise_multiplier=1.0, adaptive=AdaptiveClip(0.5, 0.2, 2.0))
    for round in range(200):
        lengths = np.exp(random.standard_normal(40)) * 5
        update = summed(mechanism, [upload([x], [0]) for x in lengths], state=state, seed=round)
        fixed = replace(mechanism, adaptive=None)
        assert torch.equal(update, summed(fixed, [upload([x], [0]) for x in lengths], state=_at(state), seed=round))
    assert 4 < float(state.private[CLIP]) < 6.3


def counted(uploads: Sequence[Arrived], count_noise: float = 0.0, seed: int = 0) -> float:
    """The noisy count that moved the clip, read from how far it moved."""
    state, mechanism = server(), replace(FIXED, adaptive=AdaptiveClip(0.5, 0.2, count_noise))
    summed(mechanism, uploads, state=state, seed=seed)
    return -math.log(state.private[CLIP]) / 0.2 * mechanism.cohort_size


@given(cohort=st.lists(UPLOADS, max_size=6), one=UPLOADS, other=UPLOADS)
def test_one_client_moves_the_count_by_a_half_and_by_one_where_it_is_replaced(
    cohort: list[Arrived], one: Arrived, other: Arrived
) -> None:
    """As the split of the noise has it (`update_noise_multiplier`); whatever it sends."""
    without, with_one, with_other = counted(cohort), counted([*cohort, one]), counted([*cohort, other])
    assert abs(with_one - without) == pytest.approx(0.5, abs=1e-9)
    assert abs(with_one - with_other) <= 1 + 1e-9


def test_the_count_has_the_noise_that_it_was_given() -> None:
    """2,000 draws: a deviation off by 15% would fail with a probability above 99.9%."""
    drawn = np.array([counted([], 3.0, seed) for seed in range(2000)]) / 3
    assert abs(drawn.mean()) < 4.9 / 2000**0.5
    assert abs(drawn.std() - 1) < 4.9 / 4000**0.5


def _at(state: ServerState) -> ServerState:
    """A server whose clip is the one that the last round had."""
    before = server()
    before.private[CLIP] = torch.tensor(state.measures["clip"], dtype=torch.float64)
    return before


def test_the_clip_is_in_the_checkpoint() -> None:
    state = server()
    state.private[CLIP] = torch.tensor(0.125, dtype=torch.float64)
    after = server()
    restore_state(after, snapshot(state, 3, {}))
    assert float(after.private[CLIP]) == 0.125
    assert after.private[CLIP].dtype == torch.float64


def test_what_is_spent_is_named_for_what_it_is() -> None:
    assert set(FIXED.spent(3)) == {"privacy/epsilon"}
    both = replace(FIXED, simulated=replace(ACCOUNTANT, cohort=50, noise_multiplier=9.0))
    assert both.spent(3) == {
        "privacy/epsilon": ACCOUNTANT.epsilon(3),
        "privacy/simulated_epsilon": both.simulated.epsilon(3),  # type: ignore[union-attr]
    }


def test_a_method_says_what_could_be_sent_whoever_was_sampled() -> None:
    """By default what a client of the plan that every method has would send."""

    class Half(LoRA):
        def upload_support(self, shared: Shared, plan: Plan) -> Tensor:
            return torch.arange(3)

    shared: Shared = None  # type: ignore[assignment]
    assert Method.could_upload(Half(), shared).tolist() == [0, 1, 2]  # type: ignore[union-attr]
