"""What a prediction says is sent is what a run sends, byte by byte."""

import pytest
import torch
from torch import nn

import decentral
from decentral import algorithms, compressors
from decentral.algorithms.rounds import Place, message_nbytes
from decentral.communicators import run_local
from decentral.simulate import Links, Machine, Workload, bytes_sent, predict

COMPRESSORS = {
    "none": {},
    "nuqsgd": {"bits": 4, "block_size": 512},
    "qsgd": {"bits": 3},
    "natural": {},
    "ef-signsgd": {},
    "intsgd": {},
    "heuristic-intsgd": {"bits": 32},
}
CAP_MB = 0.15


def algorithm_of(name, compressor, **options):
    """Return the algorithm, or None if it refuses the compressor."""
    c = compressors.from_name(compressor, **COMPRESSORS[compressor])
    try:
        return algorithms.from_name(name, compressor=c, **options)
    except ValueError:
        return None


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 200), nn.Linear(200, 7))


def sent_in_third_step(comm, make):
    """Return the bytes of a step that is not the first, and when all messages are on their way."""
    model = model_of()
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    opt = decentral.DistributedOptimizer(inner, model, make(), comm, bucket_cap_mb=CAP_MB)
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(comm.rank))
    sent = []
    for _ in range(3):
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()
        opt._settle()  # an all-reduce that is under way has rounds to go
        sent.append(opt.stats()["bytes_sent"])
    return sent[2] - sent[1]


CASES = [
    (name, compressor)
    for name in algorithms.available()
    for compressor in COMPRESSORS
    if algorithm_of(name, compressor) is not None
]


def check(make, n, hosts=None, per_host=1):
    real = run_local(n, lambda comm: sent_in_third_step(comm, make), hosts=hosts)
    workload = Workload.of(model_of(), CAP_MB)
    paper = [bytes_sent(make(), Place(n, r, per_host), workload) for r in range(n)]
    assert paper == real
    links = Links(per_host=per_host)
    step = predict(make(), n, workload, links, Machine(0.1))
    assert min(real) <= step.bytes_sent <= max(real)
    assert step.bytes_sent == max(real[::per_host])


@pytest.mark.parametrize("n", (2, 3, 4, 8))
@pytest.mark.parametrize(("name", "compressor"), CASES)
def test_as_many_bytes_as_a_run(name, compressor, n):
    check(lambda: algorithm_of(name, compressor), n)


@pytest.mark.parametrize("exchange", ("all-gather", "reduce-scatter", "auto", "two-level"))
def test_ways_of_the_all_reduce(exchange):
    hosts = (0, 0, 1, 1, 2, 2)
    make = lambda: algorithm_of("allreduce", "nuqsgd", exchange=exchange)  # noqa: E731
    check(make, 6, hosts=hosts, per_host=2)


@pytest.mark.parametrize("topology", ("torus", "complete"))
def test_topologies(topology):
    check(lambda: algorithm_of("ecd-psgd", "nuqsgd", topology=topology), 8)


def test_message_sizes_are_the_compressors():
    for name, options in COMPRESSORS.items():
        c = compressors.from_name(name, **options)
        for numel in (0, 1, 1000, 5000):
            assert message_nbytes(c, numel) == c.new_payload(numel).nbytes


def test_message_of_varying_length_is_estimated_from_a_sample():
    c = compressors.from_name("nuqsgd", coding="huffman")
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(1))
    real = c.encode(x, (0, 0, 0, 0)).nbytes
    assert message_nbytes(c, len(x)) == pytest.approx(real, rel=0.02)
