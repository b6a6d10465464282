"""What every registered compressor must hold, whatever its method.

The table comes from the registry. A compressor differs from the others only by what its class says:
`lossless` ones return every bit, `unbiased` ones that are not lossless draw random numbers.
"""

import itertools

import numpy as np
import pytest
import torch
from compressor_cases import (
    KEY,
    as_numpy,
    assert_refused,
    block_norms,
    gaussian,
    round_trip,
    variants,
)

from decentral import compressors
from decentral.compressors import NotFiniteError, available, from_name, options_of
from decentral.payload import HEADER_NBYTES, Payload

VARIANTS = list(variants())


@pytest.fixture(params=VARIANTS, ids=repr)
def compressor(request):
    return request.param


@pytest.fixture(params=["numpy", "torch"])
def kind(request):
    return {"numpy": np.array, "torch": lambda x: torch.tensor(np.array(x))}[request.param]


# --- what comes back


def test_round_trip_keeps_shape_dtype_and_kind(compressor, kind):
    for n in (0, 1, 63, 64, 65, 1025, 8193):
        x = kind(gaussian(n))
        payload = compressor.fresh().encode(x, KEY)
        y = compressor.decode(payload)
        assert type(y) is type(payload.buffer) is type(x)
        assert y.dtype == x.dtype and y.shape == x.shape
        same = compressor.fresh().encode(gaussian(n), KEY)
        assert as_numpy(payload.buffer).tobytes() == same.buffer.tobytes()
        assert as_numpy(x).tobytes() == gaussian(n).tobytes()
        assert not compressor.lossless or as_numpy(y).tobytes() == as_numpy(x).tobytes()


def test_zeros_come_back_as_zeros(compressor, kind):
    assert not round_trip(compressor, kind(np.array([0, -0.0] * 70, np.float32))).any()


def test_one_element_comes_back(compressor):
    # It is its own norm; its reciprocal is rounded, so that a level next to it has a tiny chance.
    if compressor.name == "natural":
        assert abs(round_trip(compressor, np.float32([-2.5]))[0]) in (2, 4)
        return
    for value in (-2.5, 1, 3e-20, 7e30):
        assert round_trip(compressor, np.float32([value])) == pytest.approx(value, rel=1e-6)


def test_denormals(compressor):
    # The norm of 140 such numbers is below the least normal number 2^-126, where scales end.
    patterns = np.random.default_rng(0).integers(0, 1 << 18, 140, dtype=np.uint32)
    x = (patterns | np.arange(140, dtype=np.uint32) % 2 << np.uint32(31)).view(np.float32)
    y = round_trip(compressor, x)
    assert np.abs(y.astype(np.float64) - x).max() <= (0 if compressor.lossless else 2.0**-126)


@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1, 1e30])
def test_no_error_exceeds_the_norm(compressor, magnitude):
    x = gaussian(1000) * np.float32(magnitude)
    error = np.abs(round_trip(compressor, x).astype(np.float64) - x)
    assert (error <= block_norms(compressor, x) * (1 + 1e-6)).all()
    assert compressor.lossless == (not error.any())


# --- what is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_coordinate_that_is_not_finite_is_named(compressor, kind, value):
    for places in ([0], [63, 64], [137, 70, 199], [199]):
        x = gaussian(200)
        x[places] = value
        match = f"^{compressor.name}: expected finite .*got {value} at coordinate {min(places)}$"
        error = assert_refused(NotFiniteError, match, compressor.fresh().encode, kind(x), KEY)
        assert error.index == min(places)


def test_values_near_the_end_of_float32_come_back_or_are_named(compressor):
    x = gaussian(200)
    x[150] = -3e38
    if compressor.lossless:
        assert round_trip(compressor, x).tobytes() == x.tobytes()
        return
    if compressor.summable:  # its scale is a largest value, and has no square
        assert round_trip(compressor, x)[150] == pytest.approx(-3e38, rel=1e-2)
        return
    error = assert_refused(NotFiniteError, "coordinate 150$", compressor.fresh().encode, x, KEY)
    assert error.index == 150


WRONG = [
    (np.zeros(4), TypeError, "float32.*got ndarray of float64"),
    (np.zeros(4, ">f4"), TypeError, "got ndarray of >f4"),
    (torch.zeros(4, dtype=torch.float64), TypeError, "got Tensor of torch.float64"),
    ([0.0, 1.0], TypeError, "got list"),
    (np.zeros((2, 2), np.float32), ValueError, r"one-dimensional.*got shape \(2, 2\)"),
    (np.zeros(8, np.float32)[::2], ValueError, r"got shape \(4,\), not contiguous"),
    (torch.zeros(8)[::2], ValueError, r"got shape \(4,\), not contiguous"),
]


def test_wrong_vectors_are_refused(compressor):
    payload = compressor.fresh().encode(np.ones(4, np.float32), KEY)
    for vector, error, match in WRONG:
        assert_refused(
            error, f"^{compressor.name}: x .*{match}", compressor.fresh().encode, vector, KEY
        )
        for function in (compressor.decode, compressor.accumulate):
            assert_refused(error, f"^{compressor.name}: out .*{match}", function, payload, vector)


def test_wrong_sizes_are_refused(compressor, kind):
    payload = compressor.fresh().encode(kind(gaussian(1000)), KEY)
    for function in (compressor.decode, compressor.accumulate):
        match = "out must have 1000 coordinates, got 999"
        assert_refused(ValueError, match, function, payload, kind(np.zeros(999, np.float32)))
    match, small = "take it from new_payload", compressor.new_payload(900)
    assert_refused(ValueError, match, compressor.fresh().encode, gaussian(1000), KEY, small)


def test_payloads_of_other_compressors_are_refused(compressor):
    out = np.zeros(1000, np.float32)
    for other in VARIANTS:
        if repr(other) != repr(compressor):
            payload = other.fresh().encode(gaussian(1000), KEY)
            for function in (compressor.decode, compressor.accumulate):
                assert_refused(ValueError, "another compressor or options", function, payload, out)
    assert not out.any()


def test_cut_payloads_are_refused(compressor, kind):
    whole = compressor.fresh().encode(kind(gaussian(1000)), KEY).buffer
    for end, match in [(0, "at least 32 "), (31, "at least 32 "), (32, "header"), (-1, "header")]:
        payload, out = Payload(whole[:end]), kind(np.zeros(1000, np.float32))
        assert_refused(ValueError, match, compressor.decode, payload)
        assert_refused(ValueError, match, compressor.accumulate, payload, out)


def test_a_size_that_does_not_fit_the_body_is_refused(compressor):
    payload = compressor.fresh().encode(gaussian(1000), KEY)
    payload.buffer[16:24].view("<u8")[0] = 2**40
    assert_refused(ValueError, f"for {2**40} coordinates", compressor.decode, payload)


def test_wrong_magic_and_version_are_refused(compressor, kind):
    for offset in (0, 3, 4, 5):
        payload = compressor.fresh().encode(kind(gaussian(100)), KEY)
        payload.buffer[offset] += 1
        assert_refused(ValueError, "magic b'DCNT' and format version 1", compressor.decode, payload)


# --- what travels


def test_nbytes_is_exact_and_known_in_advance(compressor, kind):
    assert HEADER_NBYTES == 32
    for n in (0, 1, 63, 64, 65, 1001, 8193):
        payload = compressor.fresh().encode(kind(gaussian(n)), KEY)
        assert compressor.new_payload(n).nbytes == 32 + compressor.body_nbytes(n)
        assert payload.nbytes == len(payload.buffer) <= 32 + compressor.body_nbytes(n)
        assert payload.nbytes >= 32 + compressor.least_body_nbytes(n)
        if not compressor.fixed_length:
            continue
        assert (
            payload.nbytes == 32 + compressor.body_nbytes(n) == 32 + compressor.least_body_nbytes(n)
        )
        if compressor.lossless:
            assert payload.nbytes == 32 + 4 * n
            continue
        blocks = -(-n // getattr(compressor, "block_size", max(1, n)))
        scales = {"natural": 0, "ef-signsgd": 8 * blocks, "intsgd": 4, "heuristic-intsgd": 4}
        codes = -(-n * getattr(compressor, "bits", 1) // 8)  # EF-SignSGD: a sign
        assert payload.nbytes == 32 + scales.get(compressor.name, 4 * blocks) + codes


def test_the_header_tells_step_bucket_and_size(compressor):
    header = compressor.fresh().encode(gaussian(70), (1, 2**32 + 5, 3, 65535)).header()
    assert (header.step, header.bucket, header.numel) == (5, 65535, 70)


def test_equal_keys_give_equal_bytes_and_every_part_of_the_key_matters(compressor):
    x = gaussian(1000)
    first, second = (compressor.fresh().encode(x, KEY) for _ in range(2))
    assert first is not second and first.buffer.tobytes() == second.buffer.tobytes()
    for key in [(2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)]:
        differ = compressor.fresh().encode(x, key).body.tobytes() != first.body.tobytes()
        assert differ == (compressor.unbiased and not compressor.lossless)


def test_payloads_can_be_used_again(compressor, kind):
    x = kind(gaussian(1001))
    expected = compressor.fresh().encode(x, KEY)
    used = compressor.fresh().encode(kind(gaussian(1001, seed=1)), (5, 6, 7, 8))
    used.buffer[:] = 255  # also the bits that fill up the last byte have to be written
    assert compressor.fresh().encode(x, KEY, out=used) is used
    assert as_numpy(used.buffer).tobytes() == as_numpy(expected.buffer).tobytes()
    out = kind(np.full(1001, np.nan, np.float32))
    assert compressor.decode(used, out=out) is out
    assert as_numpy(out).tobytes() == as_numpy(compressor.decode(expected)).tobytes()


def test_accumulate_adds_the_weighted_decoded_values(compressor, kind):
    payload = compressor.fresh().encode(kind(gaussian(1001)), KEY)
    start, y = gaussian(1001, seed=1), as_numpy(compressor.decode(payload)).astype(np.float64)
    for weight in (1.0, -0.3, 1 / 3, 0.0):
        out = kind(start)
        assert compressor.accumulate(payload, out, weight) is None
        # Two products, whose factors are rounded once more, and a sum: half a unit 2^-24 for each.
        slack = 2.0**-24 * (4 * np.abs(weight * y) + np.abs(start + weight * y))
        assert (np.abs(as_numpy(out) - (start + weight * y)) <= slack).all()
    out = kind(np.zeros(1001, np.float32))
    compressor.accumulate(payload, out)
    np.testing.assert_array_equal(as_numpy(out), y)


def test_several_messages_are_added_as_one_after_the_other(compressor, kind):
    """Over lengths that are added in parts, bit for bit."""
    for numel in (1, 1001, 2 * 65536 + 77):
        codec = compressor.fresh()
        messages = [
            (codec.new_payload(numel, like=kind(gaussian(1))), weight)
            for weight in (1.0, -0.3, 0.7)
        ]
        for i, (payload, _) in enumerate(messages):
            codec.encode(kind(gaussian(numel, seed=i)), (1, 2, i, 3), out=payload)
        together, in_turn = (kind(gaussian(numel, seed=9)) for _ in range(2))
        compressor.accumulate_all(messages, together)
        for payload, weight in messages:
            compressor.accumulate(payload, in_turn, weight)
        assert as_numpy(together).tobytes() == as_numpy(in_turn).tobytes()


def test_of_several_messages_one_may_be_a_refusal(compressor, kind):
    good = compressor.fresh().encode(kind(gaussian(100)), KEY)
    refusal = compressor.refuse(100, KEY, compressor.new_payload(100, like=kind(gaussian(1))))
    out = kind(gaussian(100))
    compressor.accumulate_all([(good, 1.0), (refusal, 1.0)], out)
    assert np.isnan(as_numpy(out)).all()


def test_nothing_is_added_if_there_is_no_message_or_one_does_not_fit(compressor, kind):
    good, other = (compressor.fresh().encode(kind(gaussian(n)), KEY) for n in (100, 101))
    out = kind(gaussian(100))
    with pytest.raises(ValueError, match="out must have 101 coordinates, got 100"):
        compressor.accumulate_all([(good, 1.0), (other, 1.0)], out)
    compressor.accumulate_all([], out)
    assert as_numpy(out).tobytes() == gaussian(100).tobytes()


# --- names and options


def test_repr_makes_an_equal_compressor(compressor):
    again = eval(repr(compressor), vars(compressors).copy())
    assert type(again) is type(compressor) and repr(again) == repr(compressor)
    assert again.body_nbytes(1001) == compressor.body_nbytes(1001)


def test_unknown_names_and_options_list_the_known_ones():
    known = ", ".join(available())
    for function in (from_name, options_of):
        assert_refused(ValueError, f"compressor 'zip'; known are: {known}$", function, "zip")
    for name in available():
        options = ", ".join(options_of(name))
        takes = f"it takes {options or 'no options'}$"
        assert_refused(ValueError, f"{name!r} has no option 'bit'; {takes}", from_name, name, bit=4)


def test_options_out_of_range_are_refused():
    for option, values, expected in [
        ("bits", (9, 1, 0, "4", 4.0, None), r"must be (2\.\.8|8 or 32 \(int8, int32\))"),
        ("coding", ("zip", None, 1), "must be one of auto, fixed, narrow, elias, huffman"),
        ("block_size", (0, -1, 64.0, "64", 2**31), "must be an integer from 1 to 2147483647"),
    ]:
        names = [name for name in available() if option in options_of(name)]
        assert len(names) >= 4
        for name, value in itertools.product(names, values):
            match = f"^{name}: {option} {expected}, got {value!r}(; .*)?$"
            assert_refused(ValueError, match, from_name, name, **{option: value})
