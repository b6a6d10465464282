"""On a machine with an NVIDIA GPU (make gpu-check): the device against the oracle and the CPU."""

import numpy as np
import pytest
import torch

import decentral
from decentral.communicators import run_local
from decentral_kernels import Quantizer, accumulate, decode, encode, fold_key, reference

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"
)

SIZES = (1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 8191, 8192, 8193, 100_003)


@pytest.mark.parametrize("norm", ("l2", "max"))
@pytest.mark.parametrize("levels", ("uniform", "exponential"))
@pytest.mark.parametrize("bits", range(2, 9))
def test_kernels_equal_the_oracle(bits, levels, norm):
    rng = np.random.default_rng(bits)
    key = fold_key(1, 2, 3, bits)
    for size in SIZES:
        for block_size in (64, 100, 8192):
            q = Quantizer(bits, block_size, norm, levels)
            x = rng.standard_normal(size).astype(np.float32)
            scales = np.empty(q.num_blocks(size), np.float32)
            codes = np.empty(q.codes_nbytes(size), np.uint8)
            assert reference.encode(x, key, q, scales, codes) == -1
            d_scales = torch.empty(len(scales), device="cuda")
            d_codes = torch.empty(len(codes), dtype=torch.uint8, device="cuda")
            assert encode(torch.from_numpy(x).cuda(), key, q, d_scales, d_codes) == -1
            assert np.array_equal(d_scales.cpu().numpy(), scales), (size, block_size)
            assert np.array_equal(d_codes.cpu().numpy(), codes), (size, block_size)
            out, d_out = np.ones(size, np.float32), torch.ones(size, device="cuda")
            reference.accumulate(scales, codes, q, out, -0.3)
            accumulate(d_scales, d_codes, q, d_out, -0.3)
            assert np.array_equal(d_out.cpu().numpy(), out), (size, block_size)
            reference.decode(scales, codes, q, out)
            decode(d_scales, d_codes, q, d_out)
            assert np.array_equal(d_out.cpu().numpy(), out), (size, block_size)


@pytest.mark.parametrize("name", decentral.compressors.available())
def test_payloads_equal_the_cpus(name):
    x = torch.randn(30_001, generator=torch.Generator().manual_seed(0))
    compressor = decentral.compressors.from_name(name)
    here = compressor.fresh().encode(x, (0, 1, 2, 3))
    there = compressor.fresh().encode(x.cuda(), (0, 1, 2, 3))
    assert torch.equal(there.buffer.cpu(), here.buffer)
    assert torch.equal(compressor.decode(there).cpu(), compressor.decode(here))


@pytest.mark.parametrize("name", decentral.compressors.available())
def test_not_finite_is_refused(name):
    x = torch.ones(20_000, device="cuda")
    x[12_345] = float("nan")
    with pytest.raises(decentral.NotFiniteError) as caught:
        decentral.compressors.from_name(name).encode(x, (0, 0, 0, 0))
    assert caught.value.index == 12_345


PAIRS = [(a, "none" if a == "d-psgd" else "nuqsgd") for a in ("allreduce", "d-psgd", "ecd-psgd")]
PAIRS += [("allreduce", "ef-signsgd"), ("allreduce", "intsgd"), ("intdiana", "intsgd")]


@pytest.mark.parametrize(("algorithm", "name"), PAIRS)
def test_ranks_share_the_gpu_and_train(algorithm, name):
    def rank(comm):
        rng = torch.Generator().manual_seed(comm.rank)
        model = torch.nn.Linear(200, 1).cuda()
        opt = decentral.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), 0.05),
            model,
            decentral.algorithms.from_name(
                algorithm, compressor=decentral.compressors.from_name(name)
            ),
            comm,
        )
        losses = []
        for _ in range(60):
            x = torch.randn(32, 200, generator=rng).cuda()
            opt.zero_grad()
            loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        return losses[0], losses[-1]

    for first, last in run_local(4, rank):
        assert last < 0.2 * first
