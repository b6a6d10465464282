"""coding="auto": slower links get shorter codes, of the same values, and ranks choose alike."""

import copy
import math

import optimizer_cases as cases
import pytest
import torch
from compressor_cases import KEY, gaussian, variants
from optimizer_cases import distributed, mlp
from resuming_cases import Run, assert_equal

import decentral
from decentral.communicators import LocalCommunicator, run_local, speed
from decentral.compressors import NUQSGD, from_name
from decentral.payload import HEADER_NBYTES

NAMES = ("qsgd", "qsgdinf", "nuqsgd", "terngrad")
SLOW, MIDDLE, FAST = 1e8, 1e9, 1e11  # bits per second


def on_links(compressor, bits_per_s):
    return compressor.for_links(lambda: bits_per_s)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_chosen_stands_for_the_same_values(name):
    x, c = gaussian(30_001), from_name(name)
    slow, fast = on_links(c, SLOW), on_links(c, FAST)
    assert (slow.stats(), fast.stats()) == ({"coding": "huffman"}, {"coding": "fixed"})
    assert slow.encode(x, KEY).nbytes < 0.8 * fast.encode(x, KEY).nbytes
    expected = fast.decode(fast.encode(x, KEY))
    assert (slow.decode(slow.encode(x, KEY)) == expected).all()
    assert repr(c) == repr(slow) == repr(fast) and c.stats() == {"coding": "fixed"}
    assert fast.device_kernels and fast.fixed_length and not slow.fixed_length
    assert on_links(slow, FAST).fixed_length  # other ranks, other links


@pytest.mark.parametrize(("name", "most"), (("nuqsgd", 3.1), ("qsgd", 2.1)))
def test_in_between_codes_are_narrow(name, most):
    x, c = gaussian(1 << 17), on_links(from_name(name), MIDDLE)
    assert c.stats() == {"coding": "narrow"} and not c.fixed_length
    assert 8 * c.encode(x, KEY).nbytes / x.size < most
    expected = on_links(c, FAST)
    assert (c.decode(c.encode(x, KEY)) == expected.decode(expected.encode(x, KEY))).all()


@pytest.mark.parametrize("name", ("qsgdinf", "terngrad"))
def test_but_not_where_blocks_use_all_levels(name):
    assert on_links(from_name(name), MIDDLE).fixed_length


SECONDS = {"fixed": 0.0, "narrow": 2e-10, "huffman": 4e-9}  # of a coordinate, there and back


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", (2, 4, 8))
def test_what_is_chosen_takes_least_time_by_the_bits_that_messages_have(name, bits):
    options, x = {} if name == "terngrad" else {"bits": bits}, gaussian(1 << 17, seed=1)
    of_one = {
        kind: 8 * from_name(name, coding=kind, **options).encode(x, KEY).nbytes / x.size
        for kind in SECONDS
    }
    chosen = set()
    for bits_per_s in (10 ** (k / 4) for k in range(28, 45)):
        kind = on_links(from_name(name, **options), bits_per_s).stats()["coding"]
        seconds = {k: of_one[k] / bits_per_s + SECONDS[k] for k in SECONDS}
        assert seconds[kind] <= 1.05 * min(seconds.values()), (bits_per_s, kind, seconds)
        chosen.add(kind)
    assert chosen >= {"fixed", "huffman"}


def test_nothing_is_measured_for_who_does_not_ask():
    def never():
        raise AssertionError("measured")

    for c in variants():
        if getattr(c, "coding", None) != "auto":
            assert c.for_links(never) is c


def test_a_message_of_the_other_code_is_not_misread():
    x, slow, fast = gaussian(5000), on_links(NUQSGD(), SLOW), on_links(NUQSGD(), FAST)
    for writer, reader in ((slow, fast), (fast, slow)):
        with pytest.raises(ValueError, match="made by another compressor or options"):
            reader.decode(writer.encode(x, KEY))


@pytest.fixture
def links(monkeypatch):
    """Pretend a speed of links: set(bits per second)."""

    def set_speed(bits_per_s):
        monkeypatch.setattr(LocalCommunicator, "link_speed", lambda comm: bits_per_s)

    return set_speed


@pytest.mark.parametrize("name", ["allreduce", "ecd-psgd"])
def test_training_is_the_same_with_fewer_bytes(name, links):
    def rank(comm):
        model = mlp()
        algorithm = decentral.algorithms.from_name(name, compressor=NUQSGD(block_size=64))
        opt = distributed(model, comm, algorithm)
        cases.train(opt, model, 5)
        return opt.stats(), [p.detach().clone() for p in model.parameters()]

    found = {}
    for bits_per_s in (SLOW, FAST):
        links(bits_per_s)
        found[bits_per_s] = run_local(3, rank)
    for (slow, few), (fast, many) in zip(found[SLOW], found[FAST], strict=True):
        assert (slow["coding"], fast["coding"]) == ("huffman", "fixed")
        assert all(map(torch.equal, few, many))


def test_a_run_resumes_over_links_of_another_speed(links):
    def first(comm):
        run = Run(comm, "ecd-psgd", "nuqsgd")
        run.train(0, 5)
        state = copy.deepcopy(run.state())
        run.train(5, 10)
        return state, run.state()

    def rest(comm):
        run = Run(comm, "ecd-psgd", "nuqsgd")
        run.load(saved[comm.rank][0])
        run.train(5, 10)
        assert run.opt.stats()["coding"] == "fixed"
        return run.state()

    links(SLOW)
    saved = run_local(3, first)
    links(FAST)
    for actual, (_, expected) in zip(run_local(3, rest), saved, strict=True):
        fixed, huffman = (s["opt"]["decentral"].pop("bytes_sent") for s in (actual, expected))
        assert fixed != huffman  # from the checkpoint on
        assert_equal(actual, expected)


def test_it_is_the_measured_speed_that_decides(monkeypatch):
    """For real, between threads that say where they are: what is measured is what is asked."""
    asked = []

    def measured(comm):
        asked.append(speed.measure(comm))
        return asked[-1]

    def rank(comm):
        model = mlp()
        opt = distributed(model, comm, cases.algorithm("ecd-psgd", "nuqsgd"))
        return opt.stats()["coding"], opt.stats()["bytes_sent_startup"]

    monkeypatch.setattr(LocalCommunicator, "link_speed", measured)
    for hosts, several in (((0, 0, 0, 0), False), ((0, 0, 1, 1), True)):
        asked.clear()
        found = run_local(4, rank, hosts=hosts)
        assert len(asked) == 4 and len(set(asked)) == 1 and (asked[0] < math.inf) == several
        assert len({coding for coding, _ in found}) == 1
        assert all((nbytes > 2**17 + HEADER_NBYTES) == several for _, nbytes in found)
