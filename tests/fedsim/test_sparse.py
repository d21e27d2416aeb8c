import math
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.errors import ConfigurationError
from fedsim.sparse import (
    SparseVector,
    _kth_largest,
    _magnitudes,
    _select_on_device,
    kept_entries,
    require_density,
    topk_indices,
    topk_per_range,
)
from tests.oracle.naive_codec import naive_topk

DTYPES = (torch.float32, torch.float64)
TINY = 2.0**-149  # the smallest denormal of float32
ENTRIES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, TINY, -TINY, 3 * TINY]),  # few values, so that ties are common
)
LONG = 50_000


@st.composite
def vectors_and_k(draw: st.DrawFn) -> tuple[list[float], int]:
    entries = draw(st.lists(ENTRIES, min_size=1, max_size=80))
    return entries, draw(st.integers(1, len(entries)))


@settings(deadline=None)
@given(vectors_and_k(), st.sampled_from(DTYPES))
def test_topk_keeps_exactly_k_and_the_lowest_of_equals(case: tuple[list[float], int], dtype: torch.dtype) -> None:
    entries, k = case
    assert topk_indices(torch.tensor(entries, dtype=dtype), k).tolist() == naive_topk(entries, k)


@settings(deadline=None)
@given(vectors_and_k(), st.sampled_from(DTYPES))
def test_topk_for_gpus_chooses_the_same_entries(case: tuple[list[float], int], dtype: torch.dtype) -> None:
    entries, k = case
    magnitudes = _magnitudes(torch.tensor(entries, dtype=dtype))
    assert _select_on_device(magnitudes, k).tolist() == naive_topk(entries, k)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31 - 2), min_size=1, max_size=200), st.data())
def test_the_sample_never_changes_the_threshold(numbers: list[int], data: st.DataObject) -> None:
    """A sample of a few entries brackets badly or not at all: the k-th largest must come out exact all the same."""
    k = data.draw(st.integers(1, len(numbers)))
    sample_size = data.draw(st.integers(1, 40))
    assert _kth_largest(np.array(numbers, dtype=np.int32), k, sample_size) == sorted(numbers, reverse=True)[k - 1]


def long_vectors() -> dict[str, Tensor]:
    """Vectors long enough to be sampled, each a way to mislead a sample or a partition."""
    normal = torch.randn(LONG, generator=torch.Generator().manual_seed(0))
    places = torch.arange(LONG)
    zero = torch.zeros(LONG)
    return {
        "normal": normal,
        "heavy tails": normal**7,
        "all zero": zero,
        "all equal": torch.full((LONG,), -2.5),
        "signs": normal.sign(),
        "every second zero": torch.where(places % 2 == 0, zero, normal),
        "first half zero": torch.where(places < LONG // 2, zero, normal),
        "denormals": places % 5 * TINY,
        "few values": normal.round(),
        "increasing": normal.sort().values,
        "large where sampled": torch.where(places % 13 == 0, normal + 100, normal),
        "small where sampled": torch.where(places % 13 == 0, zero, normal + 100),
        "one large": torch.where(places == LONG - 1, torch.tensor(3e38), zero),
    }


@pytest.mark.parametrize("name", long_vectors())
def test_topk_of_long_vectors_equals_a_stable_sort(name: str) -> None:
    vector = long_vectors()[name]
    order = vector.abs().sort(descending=True, stable=True).indices
    for k in (1, LONG // 256, LONG // 64, LONG // 16, LONG // 4, LONG // 2, LONG - 1, LONG):
        assert torch.equal(topk_indices(vector, k), order[:k].sort().values)
        assert torch.equal(_select_on_device(_magnitudes(vector), k), order[:k].sort().values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_topk_on_a_gpu_equals_topk_on_the_cpu() -> None:
    for name, vector in long_vectors().items():
        for k in (1, LONG // 64, LONG // 4, LONG):
            found = topk_indices(vector.cuda(), k)
            assert found.is_cuda
            assert torch.equal(found.cpu(), topk_indices(vector, k)), name


def test_topk_leaves_the_vector_alone_and_needs_no_gradient() -> None:
    vector = torch.tensor([[1.0, 9.0], [-3.0, 9.0], [2.0, 9.0]], requires_grad=True)[:, 0]  # a strided view
    assert topk_indices(vector, 2).tolist() == [1, 2]
    assert vector.tolist() == [1.0, -3.0, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -math.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_refuses_what_is_not_finite(bad: float, dtype: torch.dtype) -> None:
    vector = torch.tensor([0.0, 1.0, bad, 2.0, bad], dtype=dtype)
    with pytest.raises(ValueError, match="2 of 5 entries are not finite, the first at index 2"):
        topk_indices(vector, 1)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_topk_refuses_k_outside_the_vector(k: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 3, got {k}"):
        topk_indices(torch.ones(3), k)


def test_topk_refuses_other_dtypes_and_shapes() -> None:
    with pytest.raises(TypeError, match="float16"):
        topk_indices(torch.ones(3, dtype=torch.float16), 1)
    with pytest.raises(ValueError, match="shape"):
        topk_indices(torch.ones(3, 3), 1)
    with pytest.raises(ValueError, match="shape"):
        topk_indices(torch.ones(0), 1)


@settings(deadline=None)
@given(st.lists(st.lists(ENTRIES, min_size=1, max_size=20), min_size=1, max_size=6), st.floats(0.01, 1))
def test_topk_per_range_is_topk_within_each_range(parts: list[list[float]], density: float) -> None:
    edges = np.cumsum([0, *map(len, parts)]).tolist()
    ranges = list(pairwise(edges))
    expected = [
        start + index
        for (start, stop), part in zip(ranges, parts, strict=True)
        for index in naive_topk(part, kept_entries(density, stop - start))
    ]
    assert topk_per_range(torch.tensor(list(chain(*parts))), density, ranges).tolist() == expected


@pytest.mark.parametrize(
    "ranges", [[], [(0, 3)], [(0, 2), (3, 4)], [(0, 3), (2, 4)], [(0, 5)], [(2, 4), (0, 2)], [(0, 0), (0, 4)]]
)
def test_topk_per_range_refuses_ranges_that_are_no_partition(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="do not cut a vector of 4"):
        topk_per_range(torch.ones(4), 0.5, ranges)


def test_kept_entries_rounds_down_and_keeps_at_least_one() -> None:
    assert [kept_entries(density, 10) for density in (0.01, 0.1, 0.29, 0.5, 1)] == [1, 1, 2, 5, 10]


@pytest.mark.parametrize("density", [1e-9, 0.25, 1, 1.0])
def test_a_density_passes_through(density: float) -> None:
    assert require_density("upload_density", density) == density


@pytest.mark.parametrize("density", [0, -0.5, 1.0001, math.nan, math.inf])
def test_what_is_no_density_is_refused_by_name(density: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"upload_density is {density}; expected .* \(0, 1\]"):
        require_density("upload_density", density)


def test_a_sparse_vector_is_zero_where_nothing_was_kept() -> None:
    vector = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    sparse = SparseVector.at(vector, torch.tensor([0, 2]))
    assert (sparse.length, sparse.count) == (4, 2)
    assert torch.equal(sparse.to_dense(), torch.tensor([1.0, 0.0, 3.0, 0.0], dtype=torch.float64))


def test_a_dense_vector_is_itself() -> None:
    vector = torch.randn(5)
    dense = SparseVector.dense(vector)
    assert (dense.length, dense.count, dense.indices) == (5, 5, None)
    assert dense.to_dense() is vector


@pytest.mark.parametrize(
    ("length", "values", "indices"),
    [
        (3, torch.ones(2), None),
        (3, torch.ones(2), torch.tensor([0, 1, 2])),
        (3, torch.ones(2), torch.tensor([0, 1], dtype=torch.int32)),
        (1, torch.ones(2), torch.tensor([0, 1])),
        (4, torch.ones(4), torch.tensor([[0, 1], [2, 3]])),
        (4, torch.ones(2, 2), None),
    ],
)
def test_a_sparse_vector_refuses_parts_that_do_not_fit(length: int, values: Tensor, indices: Tensor | None) -> None:
    with pytest.raises(ValueError, match="must"):
        SparseVector(length, values, indices)


def places(numbers: set[int]) -> Tensor:
    return torch.tensor(sorted(numbers), dtype=torch.int64)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_what_is_written_over_a_support_is_read_back(length: int, data: st.DataObject) -> None:
    """Sparse within the support, or a value for each of its entries: then no index is left to pay for."""
    support = data.draw(st.sets(st.integers(0, length - 1)))
    kept = data.draw(
        st.one_of(st.just(support), st.sets(st.sampled_from(sorted(support)))) if support else st.just(support)
    )
    vector = torch.arange(1.0, length + 1)
    sparse = SparseVector.at(vector, places(kept))
    cut = sparse.within(places(support))
    assert cut.length == len(support)
    assert (cut.indices is None) == (kept == support)
    assert cut.to_dense().tolist() == [float(place + 1) * (place in kept) for place in sorted(support)]
    back = cut.beyond(places(support), length)
    assert back.length == length
    assert back.indices is not None
    assert back.indices.tolist() == sorted(kept)
    assert torch.equal(back.values, sparse.values)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_a_dense_vector_is_cut_to_the_support(length: int, data: st.DataObject) -> None:
    support = data.draw(st.sets(st.integers(0, length - 1)))
    cut = SparseVector.dense(torch.arange(1.0, length + 1)).within(places(support))
    assert cut.indices is None
    assert cut.values.tolist() == [float(place + 1) for place in sorted(support)]
    back = cut.beyond(places(support), length).to_dense()
    assert back.tolist() == [float(place + 1) * (place in support) for place in range(length)]


@pytest.mark.parametrize(
    ("kept", "support", "says"),
    [
        ({0, 3}, {3, 5}, "1 of 2 entries lie outside the 2"),
        ({4}, {3, 5}, "1 of 1 entries lie outside the 2"),
        ({6, 7}, {3, 5}, "2 of 2 entries lie outside the 2"),
        ({3, 5}, set(), "2 of 2 entries lie outside the 0"),
    ],
)
def test_what_lies_outside_the_support_is_refused(kept: set[int], support: set[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SparseVector.at(torch.ones(8), places(kept)).within(places(support))


def test_nothing_fits_an_empty_support() -> None:
    for vector in (SparseVector.at(torch.ones(8), places(set())), SparseVector.dense(torch.ones(8))):
        cut = vector.within(places(set()))
        assert (cut.length, cut.count, cut.indices) == (0, 0, None)
        assert cut.beyond(places(set()), 8).to_dense().tolist() == [0.0] * 8
