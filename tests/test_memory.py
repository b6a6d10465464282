"""What malloc keeps of gradients: counted in page faults, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from optimizer_cases import algorithm, distributed, mlp, on_ranks

import decentral.optimizer
from decentral.memory import keep_freed

# Left alone, malloc gives memory back in most processes and keeps it in some, where something else
# lies at the heap's end. So each begins with thresholds that give all of it back, as keep_freed()
# finds them. Huge pages, which hide faults, are off.
SCRIPT = """
import ctypes, resource, statistics, sys
import torch
from torch import nn
from decentral.memory import keep_freed

libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE, where there is one
assert libc.mallopt(-3, 1 << 17) and libc.mallopt(-1, 1 << 17)  # M_MMAP_, M_TRIM_THRESHOLD
torch.set_num_threads(1)
widths = [int(width) for width in sys.argv[2:]]
model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:])))
if sys.argv[1] == "keep":
    keep_freed(model.parameters())
    keep_freed(nn.Linear(2, 2).parameters())  # another optimizer needs less: the first one's stays

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model.zero_grad()
    model(torch.ones(2, widths[0])).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(statistics.median(step() for _ in range(25)))  # at first the heap grows
"""
SMALL = (100, 2000, 2000, 2000, 2000, 10)  # 49 MB in pieces of 16
LARGE = (100, 3500, 3500, 10)  # 50 MB, nearly all of it in a piece
PAGES = 12_000  # of either, of 4 KB


def faults_per_step(how, widths, **environment):
    """Return what a process that does, or does not, call keep_freed() has in most steps."""
    given = {
        k: v for k, v in os.environ.items() if "MALLOC" not in k.upper() and k != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, *map(str, widths)],
        env=given | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told")
@pytest.mark.parametrize("widths", (SMALL, LARGE), ids=("small", "large"))
def test_gradients_cause_no_page_faults(widths):
    assert faults_per_step("leave", widths) > PAGES / 4  # or the line below would mean nothing
    assert faults_per_step("keep", widths) < PAGES / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_what_the_environment_says_of_malloc_stands(variable, value):
    assert faults_per_step("keep", SMALL, **{variable: value}) > PAGES / 4


@pytest.mark.parametrize("name", ("allreduce", "ecd-psgd"))
def test_an_optimizer_of_several_ranks_asks_for_it(monkeypatch, name):
    asked = []
    monkeypatch.setattr(decentral.optimizer, "keep_freed", asked.append)

    def rank(comm):
        distributed(mlp(), comm, algorithm(name))

    on_ranks(2, rank)
    assert [len(list(parameters)) for parameters in asked] == [4, 4]


def test_without_gradients_on_the_cpu_there_is_nothing_to_ask_for():
    keep_freed([])
    keep_freed([torch.zeros(3)])
