"""One message is one buffer: its header, its length, and the memory that travels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.payload import FORMAT_VERSION, HEADER_NBYTES, Header, Payload, Wire

FIELDS = {"configuration": 0x89ABCDEF, "step": 0x01020304, "bucket": 0x0506, "numel": 0x1122334455}
KINDS = {"numpy": None, "torch": torch.zeros(1)}


def written(body_nbytes=7, like=None, **changes):
    payload = Payload.empty(body_nbytes, like)
    payload.write_header(**FIELDS | changes)
    return payload


def raw(payload):
    return bytes(np.asarray(payload.buffer))


@pytest.mark.parametrize("kind", KINDS)
def test_header_lies_where_the_format_says(kind):
    """Offsets, widths and byte order as the module's docstring gives them, read without struct."""
    head = raw(written(7, KINDS[kind]))[:32]
    assert HEADER_NBYTES == 32
    assert head[0:4] == b"DCNT"
    assert head[4:6] == FORMAT_VERSION.to_bytes(2, "little")
    assert head[6:8] == bytes([0x06, 0x05])  # bucket
    assert head[8:12] == bytes([0xEF, 0xCD, 0xAB, 0x89])  # configuration
    assert head[12:16] == bytes([4, 3, 2, 1])  # step
    assert head[16:24] == bytes([0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0])  # coordinates
    assert head[24:32] == bytes([39, 0, 0, 0, 0, 0, 0, 0])  # bytes of the whole message


@given(
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 100),
    st.sampled_from(list(KINDS)),
)
def test_header_round_trip(bucket, configuration, step, numel, body, kind):
    payload = Payload.empty(body, KINDS[kind])
    payload.write_header(configuration, step, bucket, numel)
    assert payload.header() == Header(bucket, configuration, step, numel, 32 + body)


def test_step_wraps_instead_of_failing_after_2_to_the_32_steps():
    assert written(step=2**32 + 5).header().step == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", (0, 1, 31, 32, 33, 8191))
def test_nbytes_is_the_length_of_the_buffer_that_travels(body, kind):
    payload = written(body, KINDS[kind])
    assert payload.nbytes == 32 + body == payload.wire.outgoing(False).nbytes
    assert len(payload.body) == body
    assert payload.header().nbytes == payload.nbytes
    assert isinstance(payload.buffer, torch.Tensor) == (kind == "torch")


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_payload_holds_no_message(kind):
    with pytest.raises(ValueError, match="expected magic"):
        Payload.empty(10, KINDS[kind]).header()


def test_wrong_magic_is_refused():
    payload = written()
    payload.buffer[:4] = np.frombuffer(b"JUNK", np.uint8)
    with pytest.raises(ValueError, match=r"payload: expected magic b'DCNT' .* got b'JUNK' and 1;"):
        payload.header()


def test_another_format_version_is_refused():
    payload = written()
    payload.buffer[4] = FORMAT_VERSION + 1
    expected = rf"format version {FORMAT_VERSION}, got b'DCNT' and {FORMAT_VERSION + 1}; do all"
    with pytest.raises(ValueError, match=expected):
        payload.header()


@pytest.mark.parametrize("length", (32, 38))
def test_a_cut_message_is_refused(length):
    cut = Payload(written(7).buffer[:length].copy())
    with pytest.raises(ValueError, match=f"payload: its header says 39 bytes, got {length}"):
        cut.header()


def test_a_message_that_grew_is_refused():
    longer = Payload(np.append(written(7).buffer, np.uint8(0)))
    with pytest.raises(ValueError, match="its header says 39 bytes, got 40"):
        longer.header()


@pytest.mark.parametrize("length", (0, 31))
def test_less_than_a_header_is_refused(length):
    with pytest.raises(ValueError, match=f"payload: expected at least 32 bytes, got {length}"):
        Payload(np.zeros(length, np.uint8)).header()


@pytest.mark.parametrize("kind", KINDS)
def test_sections_are_views_of_the_body(kind):
    payload = written(12, KINDS[kind])
    scales = payload.section(0, 8, np.float32)
    codes = payload.section(8, 4, np.uint8)
    scales[:] = [1.5, -2.0]
    codes[:] = [1, 2, 3, 255]
    assert scales.dtype == np.float32 and codes.dtype == np.uint8
    assert raw(payload)[32:] == np.array([1.5, -2.0], "<f4").tobytes() + bytes([1, 2, 3, 255])
    assert payload.header().numel == FIELDS["numel"]  # the header is no part of the body


def test_sections_follow_the_buffer():
    payload = written(8)
    payload.buffer[32:36] = np.frombuffer(np.float32(0.25).tobytes(), np.uint8)
    assert payload.section(0, 4, np.float32)[0] == 0.25


@pytest.mark.parametrize("device_direct", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_host_memory_travels_without_a_copy(kind, device_direct):
    """What MPI gets is the payload's own memory, also when MPI could take device memory."""
    payload = written(5, KINDS[kind])
    buffer = payload.buffer
    address = buffer.data_ptr() if isinstance(buffer, torch.Tensor) else buffer.ctypes.data
    for array in (payload.wire.outgoing(device_direct), payload.wire.incoming(device_direct)):
        assert isinstance(array, np.ndarray)
        assert array.ctypes.data == address and array.nbytes == payload.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_what_lands_in_a_wire_is_in_the_payload(kind):
    message = raw(written(5, step=9))
    payload = Payload.empty(5, KINDS[kind])
    payload.wire.incoming(False)[:] = np.frombuffer(message, np.uint8)
    payload.wire.landed(False)
    assert raw(payload) == message and payload.header().step == 9


def test_a_parameter_that_requires_gradients_has_a_wire():
    parameter = torch.nn.Parameter(torch.ones(3))
    Wire(parameter).incoming(False)[:] = 2
    assert parameter.tolist() == [2, 2, 2]
