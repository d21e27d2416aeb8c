import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.codec import (
    HEADER_BYTES,
    INDEX_CODINGS,
    VALUE_DTYPES,
    Part,
    PayloadError,
    decode,
    decode_message,
    decode_part,
    encode,
    values_in,
)
from fedsim.errors import ConfigurationError
from fedsim.sparse import IndexSet, SparseVector, kept_entries
from tests.oracle.naive_codec import naive_decode, naive_encode, payload_of

DENSITIES = (1 / 4, 1 / 16, 1 / 64, 1 / 256)
CODINGS = st.sampled_from(INDEX_CODINGS)
DTYPES = st.sampled_from(sorted(VALUE_DTYPES))
FINITE = st.floats(-60_000, 60_000, width=32)  # within float16


@st.composite
def sparse_vectors(draw: st.DrawFn) -> SparseVector:
    """Dense and sparse, empty to full, in runs and far apart, up to lengths that nobody could write out."""
    length = draw(st.one_of(st.integers(0, 60), st.integers(61, 2000)))
    kept = st.sets(st.integers(0, length - 1), max_size=60) if length else st.just(set())
    indices = draw(st.one_of(st.none(), kept, st.just(set(range(length)))))
    count = length if indices is None else len(indices)
    values = torch.tensor(draw(st.lists(FINITE, min_size=min(count, 60), max_size=min(count, 60))))
    values = values.repeat(count // 60 + 1)[:count]
    return SparseVector(length, values, None if indices is None else torch.tensor(sorted(indices), dtype=torch.int64))


@st.composite
def index_sets(draw: st.DrawFn) -> IndexSet:
    """Empty to full, in runs and far apart."""
    length = draw(st.one_of(st.integers(0, 60), st.integers(61, 2000)))
    some = st.sets(st.integers(0, length - 1), max_size=60) if length else st.just(set())
    indices = draw(st.one_of(some, st.just(set(range(length)))))
    return IndexSet(length, torch.tensor(sorted(indices), dtype=torch.int64))


PARTS = st.one_of(sparse_vectors(), index_sets(), st.binary(max_size=40))


def same(left: SparseVector, right: SparseVector) -> bool:
    """Equal support and equal values, and -0.0 is not 0.0."""
    if (left.indices is None) != (right.indices is None) or left.length != right.length:
        return False
    if left.indices is not None and right.indices is not None and not torch.equal(left.indices, right.indices):
        return False
    signs_equal = torch.equal(left.values.signbit(), right.values.signbit())
    return signs_equal and torch.equal(left.values, right.values)


def same_part(left: Part, right: Part) -> bool:
    """Equal in kind too; a vector that was sent dense comes back dense."""
    if isinstance(left, SparseVector) and isinstance(right, SparseVector):
        return left.length == right.length and torch.equal(left.to_dense(), right.to_dense())
    if isinstance(left, IndexSet) and isinstance(right, IndexSet):
        return left.length == right.length and torch.equal(left.indices, right.indices)
    return isinstance(left, bytes) and left == right


@settings(deadline=None)
@given(sparse_vectors(), CODINGS, DTYPES, st.integers(0, 2**32 - 1))
def test_what_is_decoded_is_what_was_encoded(vector: SparseVector, coding: str, dtype: str, examples: int) -> None:
    payload = encode(vector, coding, VALUE_DTYPES[dtype], examples)
    decoded, decoded_examples = decode(payload)
    rounded = SparseVector(vector.length, vector.values.to(VALUE_DTYPES[dtype]), vector.indices)
    if decoded.indices is None:
        rounded = SparseVector.dense(rounded.to_dense())
    assert decoded.values.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert same(decoded, SparseVector(rounded.length, rounded.values.to(decoded.values.dtype), rounded.indices))
    assert decoded_examples == examples
    assert decoded.values.is_contiguous()


@settings(deadline=None)
@given(sparse_vectors(), CODINGS, DTYPES, st.integers(0, 2**32 - 1))
def test_payloads_equal_those_of_the_plain_twin(vector: SparseVector, coding: str, dtype: str, examples: int) -> None:
    indices = None if vector.indices is None else vector.indices.tolist()
    payload = encode(vector, coding, VALUE_DTYPES[dtype], examples)
    assert payload == naive_encode(vector.length, indices, vector.values.tolist(), coding, dtype, examples)
    decoded, _ = decode(memoryview(bytearray(payload)))
    read = naive_decode(payload)
    assert read == (
        decoded.length,
        None if decoded.indices is None else decoded.indices.tolist(),
        decoded.values.tolist(),
        examples,
    )


@settings(deadline=None)
@given(sparse_vectors())
def test_auto_is_the_smallest_and_dense_stays_dense(vector: SparseVector) -> None:
    sizes = [len(encode(vector, coding)) for coding in ("dense", "bitmask", "rice")]
    assert len(encode(vector)) == min(sizes)
    assert encode(vector)[4] == sizes.index(min(sizes))
    if vector.indices is None:
        assert len(set(sizes)) == 1
        assert decode(encode(vector, "rice"))[0].indices is None


def naive_index_set(part: IndexSet, examples: int) -> bytes:
    """A set's payload is the smaller of a vector's under bitmask and rice, without values and their dtype."""
    places = part.indices.tolist()
    whole = [
        naive_encode(part.length, places, [0.0] * len(places), coding, "float16", examples)
        for coding in ("bitmask", "rice")
    ]
    smallest = min(whole, key=len)
    return smallest[:5] + b"\xff" + smallest[6 : len(smallest) - 2 * len(places)]


@settings(deadline=None)
@given(index_sets(), CODINGS, DTYPES, st.integers(0, 2**32 - 1))
def test_a_set_of_indices_costs_the_smaller_index_section_and_no_values(
    part: IndexSet, coding: str, dtype: str, examples: int
) -> None:
    payload = encode(part, coding, VALUE_DTYPES[dtype], examples)
    assert payload == naive_index_set(part, examples)
    found, found_examples = decode_part(payload)
    assert same_part(found, part)
    assert found_examples == examples
    assert values_in(payload) == 0


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_raw_bytes_cost_themselves_and_a_header(data: bytes, examples: int) -> None:
    payload = encode(data, examples=examples)
    assert payload == b"FSV1\x03\xff\x00" + struct.pack("<4I", len(data), 0, examples, len(data)) + data
    assert decode_part(memoryview(payload)) == (data, examples)
    assert values_in(payload) == 0


@settings(deadline=None)
@given(st.lists(PARTS, max_size=5), CODINGS)
def test_a_message_is_its_payloads_one_after_another(parts: list[Part], coding: str) -> None:
    """Only values count as values; the first payload says how many examples there were."""
    message = b"".join(encode(part, coding, torch.float64, 7 + at) for at, part in enumerate(parts))
    found, examples = decode_message(message)
    assert all(map(same_part, found, parts))
    assert len(found) == len(parts)
    assert examples == (7 if parts else 0)
    assert values_in(message) == sum(part.count for part in parts if isinstance(part, SparseVector))


@pytest.mark.parametrize("part", [IndexSet(9, torch.tensor([2])), b"seed"])
def test_a_vector_is_not_read_from_what_has_no_values(part: Part) -> None:
    with pytest.raises(PayloadError, match="holds no values"):
        decode(encode(part))


@pytest.mark.parametrize("indices", [[1, 1], [2, 1], [-1, 2], [1, 4]])
def test_a_set_of_indices_out_of_order_or_range_is_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly increasing within a vector of 4"):
        encode(IndexSet(4, torch.tensor(indices)))


@pytest.mark.parametrize("indices", [[0], [2**32 - 2], [0, 2**31, 2**32 - 2], [2**32 - 4, 2**32 - 3, 2**32 - 2]])
def test_the_longest_vector_costs_only_what_is_kept(indices: list[int]) -> None:
    vector = SparseVector(2**32 - 1, torch.ones(len(indices)), torch.tensor(indices))
    payload = encode(vector)
    assert len(payload) < 60
    assert same(decode(payload)[0], vector)


def information_bits(length: int, count: int) -> float:
    """log2 of the number of ways to choose `count` of `length` entries."""
    chosen = math.lgamma(length + 1) - math.lgamma(count + 1) - math.lgamma(length - count + 1)
    return chosen / math.log(2)


@pytest.mark.parametrize("length", [10_000, 100_000, 600_000, 2_000_000])
@pytest.mark.parametrize("density", DENSITIES)
def test_payloads_are_within_one_per_cent_of_the_least_possible(length: int, density: float) -> None:
    count = kept_entries(density, length)
    support = np.random.default_rng(length).choice(length, count, replace=False, shuffle=False)
    vector = SparseVector(length, torch.randn(count), torch.from_numpy(np.sort(support)))
    payload = encode(vector)
    least = 8 * HEADER_BYTES + 32 * count + information_bits(length, count)
    assert 8 * len(payload) <= 1.01 * least
    assert same(decode(payload)[0], vector)


def test_the_header_is_small() -> None:
    assert HEADER_BYTES <= 32
    assert len(encode(SparseVector(9, torch.ones(0), torch.ones(0, dtype=torch.int64)))) == HEADER_BYTES


def test_a_vector_with_gradient_and_stride_is_encoded() -> None:
    vector = torch.ones(6, 2, requires_grad=True)[:, 0]
    assert decode(encode(SparseVector.dense(vector)))[0].values.tolist() == [1.0] * 6


@pytest.mark.parametrize("dtype", sorted(VALUE_DTYPES))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(dtype: str, bad: float) -> None:
    vector = SparseVector(9, torch.tensor([1.0, bad, bad]), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=f"2 of 3 values are not finite as {dtype}, the first .{bad}. at position 1"):
        encode(vector, value_dtype=VALUE_DTYPES[dtype])


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 70_000.0), ("bfloat16", 3.4028234e38), ("float32", 1e300), ("float16", -1e6)]
)
def test_values_that_overflow_are_refused_by_the_name_of_the_dtype(dtype: str, value: float) -> None:
    vector = SparseVector.dense(torch.tensor([0.0, value], dtype=torch.float64))
    with pytest.raises(ValueError, match=f"1 of 2 values are not finite as {dtype}"):
        encode(vector, value_dtype=VALUE_DTYPES[dtype])


@pytest.mark.parametrize("indices", [[1, 1], [2, 1], [-1, 2], [1, 4], [0, 2**40]])
@pytest.mark.parametrize("coding", INDEX_CODINGS)
def test_indices_out_of_order_or_range_are_refused(indices: list[int], coding: str) -> None:
    with pytest.raises(ValueError, match="strictly increasing within a vector of 4"):
        encode(SparseVector(4, torch.ones(2), torch.tensor(indices)), coding)


def test_misspelt_options_are_answered_with_near_matches() -> None:
    vector = SparseVector.dense(torch.ones(2))
    with pytest.raises(ConfigurationError, match="did you mean rice"):
        encode(vector, "rise")
    with pytest.raises(ConfigurationError, match="unknown value dtype 'int32'"):
        encode(vector, value_dtype=torch.int32)


@pytest.mark.parametrize("examples", [-1, 2**32])
def test_numbers_beyond_the_header_are_refused(examples: int) -> None:
    with pytest.raises(ValueError, match="below 2\\*\\*32"):
        encode(SparseVector.dense(torch.ones(2)), examples=examples)
    with pytest.raises(ValueError, match="below 2\\*\\*32"):
        encode(SparseVector(2**32, torch.ones(1), torch.tensor([0])))


ONE, TWO = struct.pack("<f", 1), struct.pack("<2f", 1, 2)
BROKEN = {
    "nothing": b"",
    "half a header": payload_of("dense", "float32", 0, 0, 0, 0, b"", b"")[:-1],
    "another magic": b"FSV2" + payload_of("dense", "float32", 0, 0, 0, 0, b"", b"")[4:],
    "coding unknown": b"FSV1\x04" + payload_of("dense", "float32", 0, 0, 0, 0, b"", b"")[5:],
    "dtype unknown": b"FSV1\x00\x04" + payload_of("dense", "float32", 0, 0, 0, 0, b"", b"")[6:],
    "raw bytes with a value dtype": b"FSV1\x03\x00" + encode(b"seed")[6:],
    "raw bytes cut short": encode(b"seed")[:-1],
    "raw bytes of another length": encode(b"seed")[:7] + b"\x03" + encode(b"seed")[8:],
    "dense without a value dtype": b"FSV1\x00\xff" + payload_of("dense", "float32", 0, 0, 0, 0, b"", b"")[6:],
    "a set of indices with a value": encode(IndexSet(8, torch.tensor([2]))) + ONE,
    "values missing": payload_of("dense", "float32", 0, 2, 2, 0, b"", ONE),
    "bytes after the end": payload_of("dense", "float32", 0, 1, 1, 0, b"", TWO),
    "dense with an index section": payload_of("dense", "float32", 0, 1, 1, 0, b"\x80", ONE),
    "dense with a parameter": payload_of("dense", "float32", 1, 1, 1, 0, b"", ONE),
    "dense with too few values": payload_of("dense", "float32", 0, 2, 1, 0, b"", ONE),
    "more values than entries": payload_of("bitmask", "float32", 0, 1, 2, 0, b"\xc0", TWO),
    "bitmask too long": payload_of("bitmask", "float32", 0, 8, 1, 0, b"\x80\x00", ONE),
    "bitmask too short": payload_of("bitmask", "float32", 0, 9, 1, 0, b"\x80", ONE),
    "bitmask marks fewer": payload_of("bitmask", "float32", 0, 8, 2, 0, b"\x80", TWO),
    "bitmask marks more": payload_of("bitmask", "float32", 0, 8, 1, 0, b"\xc0", ONE),
    "bitmask marks padding": payload_of("bitmask", "float32", 0, 6, 1, 0, b"\x02", ONE),
    "rice parameter too large": payload_of("rice", "float32", 32, 8, 1, 0, b"\x00" * 4 + b"\x80", ONE),
    "rice planes missing": payload_of("rice", "float32", 31, 8, 2, 0, b"\xff", TWO),
    "rice gap missing": payload_of("rice", "float32", 0, 8, 2, 0, b"\x80", TWO),
    "rice gap too many": payload_of("rice", "float32", 0, 8, 1, 0, b"\xc0", ONE),
    "rice section too long": payload_of("rice", "float32", 0, 8, 1, 0, b"\x80\x00", ONE),
    "rice section for nothing": payload_of("rice", "float32", 0, 8, 0, 0, b"\x00", b""),
    "rice beyond the end": payload_of("rice", "float32", 0, 4, 1, 0, b"\x08", ONE),
    "rice low bits beyond the end": payload_of("rice", "float32", 3, 4, 1, 0, b"\xf0", ONE),
    "rice far beyond the end": payload_of("rice", "float32", 31, 2**32 - 1, 1, 0, b"\x00" * 4096 + b"\x01", ONE),
    "not a number": payload_of("dense", "float32", 0, 1, 1, 0, b"", struct.pack("<f", math.nan)),
    "infinite in half": payload_of("dense", "float16", 0, 1, 1, 0, b"", struct.pack("<e", -math.inf)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_payloads_are_refused(name: str) -> None:
    for read in (decode, decode_part):
        with pytest.raises(PayloadError):
            read(BROKEN[name])


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "nothing"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_message_with_a_broken_payload_is_refused(name: str, place: int) -> None:
    """Wherever it stands; no payload at all is a message of none."""
    parts = [encode(b"seed")]
    parts.insert(place, BROKEN[name])
    with pytest.raises(PayloadError):
        decode_message(b"".join(parts))


@pytest.mark.parametrize("coding", ["dense", "bitmask", "rice"])
def test_a_header_that_claims_a_huge_vector_allocates_nothing_like_it(coding: str) -> None:
    """4 GB claimed by 28 bytes: a lie under dense and bitmask, an honest vector with one entry under rice."""
    payload = payload_of(coding, "float32", 0, 4_000_000_000, 1, 0, b"\x80" if coding == "rice" else b"", ONE)
    tracemalloc.start()
    assert_decodes_or_is_refused(payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def assert_decodes_or_is_refused(payload: bytes) -> None:
    try:
        vector, examples = decode(payload)
    except PayloadError:
        return
    assert 0 <= examples < 2**32
    assert vector.values.isfinite().all()
    assert encode(vector, "rice", torch.float64)  # checks order and range of the indices


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode(data)


@settings(max_examples=400, deadline=None)
@given(sparse_vectors(), CODINGS, DTYPES, st.data())
def test_damaged_payloads_decode_soundly_or_are_refused(
    vector: SparseVector, coding: str, dtype: str, data: st.DataObject
) -> None:
    payload = bytearray(encode(vector, coding, VALUE_DTYPES[dtype]))
    damage(payload, data)
    cut = data.draw(st.integers(0, len(payload)))
    assert_decodes_or_is_refused(bytes(payload))
    assert_decodes_or_is_refused(bytes(payload[:cut]))
    assert_decodes_or_is_refused(bytes(payload) + b"\x00")


@settings(deadline=None)
@given(
    st.sampled_from(["dense", "bitmask", "rice"]),
    DTYPES,
    st.integers(0, 40),
    st.sampled_from([0, 1, 7, 8, 9, 64, 2**31, 2**32 - 1]),
    st.integers(0, 12),
    st.binary(max_size=24),
    st.binary(max_size=48),
)
def test_payloads_of_random_fields_decode_soundly_or_are_refused(
    coding: str, dtype: str, parameter: int, length: int, count: int, section: bytes, values: bytes
) -> None:
    assert_decodes_or_is_refused(payload_of(coding, dtype, parameter, length, count, 0, section, values))
    fitting = (values * 96)[: count * VALUE_DTYPES[dtype].itemsize]
    assert_decodes_or_is_refused(payload_of(coding, dtype, parameter, length, count, 0, section, fitting))


def damage(payload: bytearray, data: st.DataObject) -> None:
    """Overwrites up to four bytes."""
    changes = st.tuples(st.integers(0, len(payload) - 1), st.integers(0, 255))
    for place, byte in data.draw(st.lists(changes, max_size=4)):
        payload[place] = byte


@settings(deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=3), st.data())
def test_damaged_messages_decode_soundly_or_are_refused(parts: list[Part], data: st.DataObject) -> None:
    message = bytearray(b"".join(encode(part) for part in parts))
    damage(message, data)
    try:
        found, _ = decode_message(message)
    except PayloadError:
        return
    for part in found:
        encode(part, value_dtype=torch.float64)  # checks order and range of indices, and that values are finite


@settings(deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=3), st.data())
def test_a_message_cut_within_a_payload_is_refused(parts: list[Part], data: st.DataObject) -> None:
    payloads = [encode(part) for part in parts]
    ends = np.cumsum([len(payload) for payload in payloads]).tolist()
    message = b"".join(payloads)
    cut = data.draw(st.integers(1, len(message)))
    if cut in ends:
        assert len(decode_message(message[:cut])[0]) == ends.index(cut) + 1
        return
    for read in (decode_message, values_in):
        with pytest.raises(PayloadError):
            read(message[:cut])
