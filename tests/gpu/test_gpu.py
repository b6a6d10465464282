"""On a machine with an NVIDIA GPU (make gpu-check): the kernels on the device equal the oracle."""

import numpy as np
import pytest
import torch

import decentral
from decentral_kernels import Quantizer, accumulate_all, decode, encode, fold_key, reference

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"
)

SIZES = (1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 2047, 2048, 2049, 8191, 8192, 8193)
BLOCK_SIZES = (1, 64, 100, 1024, 3072, 8192, 16384)
LARGE = 1_000_003
KEY = fold_key(1, 2, 3, 4)
MESSAGES = (1, 3, 6)  # more than a kernel adds at once


def on_gpu(array):
    return torch.from_numpy(array).cuda()


def messages_of(x, q, count):
    """Return (scales, codes, weight) of some vectors, from the oracle."""
    made = []
    for i in range(count):
        scales = np.empty(q.num_blocks(x.size), np.float32)
        codes = np.empty(q.codes_nbytes(x.size), np.uint8)
        assert reference.encode(np.roll(x, i), KEY, q, scales, codes) == -1
        made.append((scales, codes, 0.7 - i))
    return made


def assert_encodes(x, given, q):
    """Assert that the tensor `given`, of the values x, is encoded as the oracle does x."""
    ((scales, codes, _),) = messages_of(x, q, 1)
    d_scales = torch.full((len(scales),), -7.0, device="cuda")
    d_codes = torch.full((len(codes),), 0xA5, dtype=torch.uint8, device="cuda")
    assert encode(given, KEY, q, d_scales, d_codes) == -1
    where = f"{q}, {x.size} coordinates"
    assert np.array_equal(d_scales.cpu().numpy().view(np.uint32), scales.view(np.uint32)), where
    assert np.array_equal(d_codes.cpu().numpy(), codes), where


def assert_decodes(x, q, count):
    messages = messages_of(x, q, count)
    on_device = [(on_gpu(s), on_gpu(c), w) for s, c, w in messages]
    out = np.random.default_rng(0).standard_normal(x.size).astype(np.float32)
    d_out = on_gpu(out)
    accumulate_all(on_device, q, d_out)
    for scales, codes, weight in messages:
        reference.accumulate(scales, codes, q, out, weight)
    assert np.array_equal(d_out.cpu().numpy(), out), (q, x.size, count)
    reference.decode(*messages[0][:2], q, out)
    decode(*on_device[0][:2], q, d_out)
    assert np.array_equal(d_out.cpu().numpy(), out), (q, x.size)


@pytest.mark.parametrize("zero_level", [True, False])
@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("levels", ["uniform", "exponential"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_kernels_equal_the_oracle(bits, levels, norm, zero_level):
    rng = np.random.default_rng(bits)
    # Compiling takes seconds: all blocks with the default width, the usual ones with the others.
    for block_size in BLOCK_SIZES if bits == 4 else (100, 8192):
        q = Quantizer(bits, block_size, norm, levels, zero_level)
        for size in (*SIZES, LARGE):
            x = rng.standard_normal(size).astype(np.float32)
            assert_encodes(x, on_gpu(x), q)
            assert_decodes(x, q, 1)


@pytest.mark.parametrize("count", MESSAGES)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_several_messages(bits, count):
    x = np.random.default_rng(0).standard_normal(20_001).astype(np.float32)
    assert_decodes(x, Quantizer(bits, 8192, "l2", "exponential"), count)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_values_of_16_bits(kind, block_size):
    q = Quantizer(4, block_size, "l2", "exponential")
    for size in SIZES:
        given = torch.randn(size, device="cuda").to(kind)
        assert_encodes(given.float().cpu().numpy(), given, q)


def test_memory_that_is_not_aligned():
    q, x = Quantizer(4, 8192, "l2", "uniform"), np.ones(20_000, np.float32)
    x[::3] = -0.25
    assert_encodes(x, on_gpu(np.concatenate([x[:1], x]))[1:], q)


@pytest.mark.parametrize("scale", [1e-30, 1e-40, 1e30])
def test_norms_that_leave_float32(scale):
    x = (np.random.default_rng(0).standard_normal(20_000) * scale).astype(np.float32)
    for block_size in (64, 100, 8192):
        assert_encodes(x, on_gpu(x), Quantizer(4, block_size, "l2", "exponential"))


def test_on_a_stream_of_the_callers():
    q, x = Quantizer(4, 8192, "l2", "exponential"), torch.zeros(1 << 22, device="cuda")
    filled = torch.randn_like(x)
    expected = decentral.compressors.NUQSGD().encode(filled, (0, 0, 0, 0)).buffer.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)  # on any other stream the vector would be zeros yet
        x.copy_(filled)
        got = decentral.compressors.NUQSGD().encode(x, (0, 0, 0, 0)).buffer
    side.synchronize()
    assert torch.equal(got, expected) and q.bits == 4


@pytest.mark.parametrize("name", decentral.compressors.available())
def test_payloads_equal_the_cpus(name):
    x = torch.randn(30_001, generator=torch.Generator().manual_seed(0))
    compressor = decentral.compressors.from_name(name)
    here = compressor.fresh().encode(x, (0, 1, 2, 3))
    there = compressor.fresh().encode(x.cuda(), (0, 1, 2, 3))
    assert torch.equal(there.buffer.cpu(), torch.as_tensor(here.buffer))
    assert there.header() == here.header()
    assert torch.equal(compressor.decode(there).cpu(), torch.as_tensor(compressor.decode(here)))
    sums = [torch.ones(30_001), torch.ones(30_001, device="cuda")]
    for payload, out in zip((here, there), sums, strict=True):
        compressor.accumulate_all([(payload, 0.5), (payload, -2.0)], out)
    assert torch.allclose(sums[1].cpu(), sums[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("coding", ["narrow", "elias", "huffman"])
def test_entropy_codes_go_by_the_host(coding):
    x = torch.randn(30_001)
    compressor = decentral.compressors.NUQSGD(coding=coding)
    payloads = [compressor.encode(v, (0, 1, 2, 3)) for v in (x, x.cuda())]
    assert torch.equal(payloads[1].buffer.cpu(), torch.as_tensor(payloads[0].buffer))
    assert torch.equal(compressor.decode(payloads[1]).cpu(), compressor.decode(payloads[0], x))


@pytest.mark.parametrize("name", decentral.compressors.available())
def test_not_finite_is_refused(name):
    x = torch.ones(20_000, device="cuda")
    x[12_345] = float("nan")
    compressor = decentral.compressors.from_name(name)
    with pytest.raises(decentral.NotFiniteError) as caught:
        compressor.encode(x, (0, 0, 0, 0))
    assert caught.value.index == 12_345
    compressor.encode(torch.ones(20_000, device="cuda"), (0, 0, 0, 0))  # nothing is left of it
