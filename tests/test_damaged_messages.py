"""A message that cannot be read names its sender, and step, bucket and reason, on who gets it."""

import re
import struct

import numpy as np
import optimizer_cases as cases
import pytest
import torch
from torch import nn

import decentral
from decentral.algorithms import AllReduce
from decentral.communicators import run_local
from decentral.communicators.local import LocalCommunicator
from decentral.compressors import from_name
from decentral.payload import HEADER_NBYTES, Payload

HOSTS = (0, 0, 1, 1)
NUMEL = 4096  # each rank has a shard
SENDER = 3  # of the ranks that exchange across hosts it is number 1


def put(at, form, value):
    return lambda message: struct.pack_into(form, message, at, value)


def cut(message):
    del message[-3:]


def cut_and_say_so(message):
    cut(message)
    struct.pack_into("<Q", message, 24, len(message))


def only_a_header(message):
    del message[HEADER_NBYTES:]
    struct.pack_into("<Q", message, 24, len(message))


def lengthen(message):
    message += bytes(5)


def no_header(message):
    del message[10:]


def noise(message):
    message[HEADER_NBYTES + 9 :] = b"\xff" * (len(message) - HEADER_NBYTES - 9)


MARK = (put(HEADER_NBYTES + 4, "B", 7), "a stream of them .1., got .* the mark 7")
NOISE = (noise, "of an? .* stream|the table of code lengths")
CODED = {  # narrow codes of so few coordinates are like fixed ones: all bits are codes
    f"{coding}-{what}": (coding, *damage)
    for coding in ("narrow", "elias", "huffman")
    for what, damage in (("mark", MARK), ("noise", NOISE))
    if (coding, what) != ("narrow", "noise")
}
CUT = [
    (cut, r"its header says \d+ bytes, got \d+"),
    (cut_and_say_so, r"expected a body of .*bytes for \d+ coordinates, got \d+"),
    (no_header, "expected at least 32 bytes, got 10"),
    (put(0, "4s", b"JUNK"), "expected magic .* got b'JUNK'"),
    (put(4, "<H", 9), "format version 1, got .* 9"),
    (put(8, "<I", 1), "the payload was made by another compressor or options"),
    (put(16, "<Q", 5), "expected a body of|out must have 5 coordinates"),
    (put(16, "<Q", 2**63), "expected a body of"),
]
OTHER = [
    (put(6, "<H", 7), "expected bucket 0 of step 1 from rank 3, got bucket 7 of step 1"),
    (put(12, "<I", 2), "expected bucket 0 of step 1 from rank 3, got bucket 0 of step 2"),
]
IDS = ["cut", "short", "no-header", "magic", "version", "options", "numel", "huge"]
WAYS = ["all-gather", "reduce-scatter", "two-level", "ecd-psgd", "d-psgd"]


def algorithm(way, compressor=None):
    if way in ("ecd-psgd", "d-psgd"):
        lossless = cases.compressor("none") if way == "d-psgd" else None
        given = compressor or lossless or from_name("nuqsgd", block_size=8)
        return decentral.algorithms.from_name(way, topology="complete", compressor=given)
    return AllReduce(compressor or from_name("nuqsgd", block_size=8), exchange=way)


def two_steps(comm, how):
    """Train; in the second step what gossip sent in the first has been read."""
    model = cases.refill(nn.Linear(NUMEL, 1, bias=False), 0)
    opt = cases.distributed(model, comm, how)
    for _ in range(2):
        opt.zero_grad()
        model(torch.arange(1.0, NUMEL + 1)).backward()
        opt.step()


# What the others see, or the odd one, whose buffers are too short for theirs.
SEEN = "of rank 3 for bucket 0 of step 1: .* was made by another compressor or options"
ODD_RANK = dict.fromkeys(WAYS, rf"{SEEN}|rank 3: got \d+ bytes from rank [012], expected at most")
ODD_RANK["two-level"] = rf"{SEEN}|rank 1: got \d+ bytes from rank 0, expected at most"


@pytest.fixture
def damaged(monkeypatch):
    """Return run(algorithm, damage): a step in which what the sender sends is damaged on its way.

    Where hosts exchange among themselves what they have added up, only what they exchange is.
    """

    def run(make, damage):
        split, exchange = LocalCommunicator.split, LocalCommunicator.exchange
        two_level = getattr(make(), "exchange", None) == "two-level"

        def split_and_remember(comm, color):
            part = split(comm, color)
            part.first = getattr(comm, "first", comm.rank)
            return part

        def altered(payload):
            message = bytearray(payload.wire.outgoing(False, payload.nbytes))
            damage(message)
            return Payload(np.array(message, np.uint8))

        def exchange_altered(comm, send, receive, tag):
            across = comm.size == 2 and len(set(comm.hosts)) == 2
            if comm.first == SENDER and (across or not two_level):
                everyone = dict.fromkeys(receive, send) if isinstance(send, Payload) else send
                send = {target: altered(payload) for target, payload in everyone.items()}
            return exchange(comm, send, receive, tag)

        monkeypatch.setattr(LocalCommunicator, "split", split_and_remember)
        monkeypatch.setattr(LocalCommunicator, "exchange", exchange_altered)

        with pytest.raises(ValueError) as caught:
            run_local(len(HOSTS), lambda comm: two_steps(comm, make()), hosts=HOSTS)
        return str(caught.value)

    return run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("damage", "reason"), CUT, ids=IDS)
def test_sender_step_bucket_and_reason_are_named(damaged, way, damage, reason):
    message = damaged(lambda: algorithm(way), damage)
    who = r"rank [012] cannot read the message of rank 3 for bucket 0 of step 1: "
    assert re.search(who + f".*({reason})", message), message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("damage", "reason"), OTHER, ids=["bucket", "step"])
def test_a_message_of_another_step_or_bucket(damaged, way, damage, reason):
    assert reason in damaged(lambda: algorithm(way), damage)


@pytest.mark.parametrize("way", WAYS)
def test_a_message_that_is_too_long(damaged, way):
    message = damaged(lambda: algorithm(way), lengthen)
    sender = 1 if way == "two-level" else SENDER  # the communicator's own numbers
    assert re.search(rf"got \d+ bytes from rank {sender}, expected at most \d+", message), message


@pytest.mark.parametrize("way", ["ecd-psgd", "d-psgd"])
def test_gossip_takes_no_refusals(damaged, way):
    message = damaged(lambda: algorithm(way), only_a_header)
    assert "of rank 3 for bucket 0 of step 1: it is the header alone" in message


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize(("coding", "damage", "reason"), CODED.values(), ids=CODED)
def test_a_damaged_stream_of_codes(damaged, way, coding, damage, reason):
    compressor = from_name("nuqsgd", bits=3, coding=coding)
    message = damaged(lambda: algorithm(way, compressor), damage)
    assert "cannot read the message of rank 3 for bucket 0 of step 1: " in message
    assert re.search(reason, message), message


@pytest.mark.parametrize("way", WAYS[:-1])
def test_one_rank_that_has_another_block_size(monkeypatch, way):
    """As it would be if ranks did not compare them at the start."""
    monkeypatch.setattr(decentral.optimizer, "check_agreement", lambda *_: None)

    def rank(comm):
        compressor = from_name("nuqsgd", block_size=16 if comm.rank == SENDER else 8)
        two_steps(comm, algorithm(way, compressor))

    with pytest.raises(ValueError, match=ODD_RANK[way]):
        run_local(len(HOSTS), rank, hosts=HOSTS)
