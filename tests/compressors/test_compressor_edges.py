"""What users meet at the edges: read-only arrays, odd keys, errors across processes, forks."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import decentral
from decentral.payload import Payload

KEY = (1, 2, 3, 4)
EVERY = [decentral.compressors.from_name(n) for n in decentral.compressors.available()]


def read_only(x):
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("compressor", EVERY, ids=lambda c: c.name)
def test_read_only_arrays_are_read_and_not_written(compressor):
    x = read_only(np.linspace(-1, 1, 100, dtype=np.float32))
    payload = compressor.encode(x, KEY)
    received = Payload(np.frombuffer(payload.buffer.tobytes(), np.uint8))
    out = np.zeros(100, np.float32)
    compressor.accumulate(received, out)
    assert np.array_equal(out, compressor.decode(payload))
    with pytest.raises(ValueError, match="out must be writable"):
        compressor.accumulate(payload, read_only(out))
    with pytest.raises(ValueError, match="out must be writable"):
        compressor.decode(payload, out)
    with pytest.raises(decentral.NotFiniteError):
        compressor.encode(read_only(np.append(x[1:], np.float32(np.nan))), KEY)


@pytest.mark.parametrize("key", [(1, 2, 3), (1, 2, 3, -1), (1, 2, 3, 2**16)])
@pytest.mark.parametrize("compressor", EVERY, ids=lambda c: c.name)
def test_a_key_that_does_not_fit_is_refused(compressor, key):
    with pytest.raises(ValueError, match=r"key must be \(seed, step, rank, bucket\)"):
        compressor.encode(np.ones(3, np.float32), key)


CODED = decentral.compressors.NUQSGD(coding="huffman")
STAGED = [c for c in [*EVERY, CODED] if not c.device_kernels]  # tests/gpu has the others


@pytest.mark.parametrize("compressor", STAGED, ids=repr)
def test_what_has_no_device_kernels_is_staged(compressor, monkeypatch):
    """Tensors of the host stand for those of a GPU: everything but the copy is the same."""
    x, y = torch.linspace(-1, 1, 3000), torch.linspace(0, 1, 3000)
    host = compressor.fresh().encode(x, KEY)
    expected, added = compressor.decode(host), y.clone()
    compressor.accumulate(host, added, 0.25)
    for module in (decentral.payload, decentral.compressors.checks):
        monkeypatch.setattr(module, "as_array", lambda vector: vector)
    payload = compressor.fresh().encode(x, KEY)
    assert isinstance(payload.wire.array, torch.Tensor)
    assert torch.equal(payload.buffer, host.buffer) and payload.nbytes == host.nbytes
    assert torch.equal(compressor.decode(payload), expected)
    out = y.clone()
    compressor.accumulate(payload, out, 0.25)
    torch.testing.assert_close(out, added, atol=1e-6, rtol=1e-6)


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(decentral.NotFiniteError("at coordinate 7", 7)))
    assert (str(error), error.index) == ("at coordinate 7", 7)


def test_numpy_integers_are_integers_and_bools_are_not():
    assert decentral.compressors.NUQSGD(np.int64(4), np.int32(64)).block_size == 64
    with pytest.raises(ValueError, match="block_size must be an integer"):
        decentral.compressors.NUQSGD(block_size=True)


FORK = """
import os, time, numpy as np, decentral_kernels as k
q = k.Quantizer(4, 8192, "max", "uniform")
x = np.ones(1 << 22, np.float32)
scales, codes = np.empty(q.num_blocks(x.size), np.float32), np.empty(x.size // 2, np.uint8)
k.set_num_threads(2)
for _ in range(5):
    k.encode(x, (1, 2), q, scales, codes)
child = os.fork()
if child == 0:
    k.encode(x, (1, 2), q, scales, codes)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_does_not_wait_for_its_parents_threads():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=100, env=os.environ)
