"""Damaged messages: is each a ValueError, or decoded to the right length and nowhere else?

    python benchmarks/fuzz.py --payloads 1000000 [--seed 0]
    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=/tmp/checked python benchmarks/fuzz.py --payloads 100000

A message of some compressor, or a refusal, is cut, lengthened, altered in header, lengths or body,
replaced by noise or by another compressor's, with and without a header that fits what came out, and
goes through decode() and accumulate_all(). Message and target each end where memory ends: a page
behind, and one before, may not be touched, and what is left of the target's own page holds values
that must stay. So an index that is wrong ends the process, or is seen. What is decoded without an
error must be a message of the right length, and accumulate_all() that refuses must add nothing.
With NUMBA_BOUNDSCHECK=1, which needs a cache of its own, the kernels check every index, those of
their own arrays too. A payload that takes a minute ends the process.
"""

import argparse
import collections
import ctypes
import faulthandler
import itertools
import mmap
import random
import struct
import sys
import time

import numpy as np

from decentral import compressors
from decentral.payload import HEADER_NBYTES, Payload

NUMELS = (0, 1, 2, 7, 8, 9, 31, 33, 64, 100, 513, 1024, 1025)
LONG = (8191, 8192, 8193, 33_000)  # segments of entropy codes, and four of them at once
OPTIONS = {
    "bits": (2, 3, 4, 5, 8, 32),
    "block_size": (1, 7, 64, 8192),
    "zero_level": (True, False),
    "coding": ("fixed", "narrow", "elias", "huffman"),
    "rounding": ("random",),
}
EXTREMES = (0, 1, 2, 3, 255, 4096, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 0x7F800000, 0x7FC00000)
CANARY = np.frombuffer(b"\x5a" * 4, np.float32)[0]
_HANG_S, _ARM_EVERY = 60, 500
_SIZE_AT, _NUMEL_AT, _CONFIGURATION_AT = 24, 16, 8


class Guarded:
    """Memory that ends where a page begins that must not be touched, and begins behind another."""

    def __init__(self, nbytes):
        page = mmap.PAGESIZE
        self.size = -(-nbytes // page) * page
        self._memory = mmap.mmap(-1, self.size + 2 * page)
        whole = np.frombuffer(self._memory, np.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for at in (0, page + self.size):
            if protect(ctypes.c_void_p(whole.ctypes.data + at), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._inside = whole[page : page + self.size]

    def last(self, nbytes, align):
        """Return (these many bytes, those before, those behind), as near to the end as can be."""
        at = (self.size - nbytes) // align * align
        inside = self._inside
        return inside[at : at + nbytes], inside[:at], inside[at + nbytes :]


class Case:
    """A compressor, and a message of it for each number of coordinates."""

    def __init__(self, compressor, seed):
        self.compressor = compressor
        compressor.prepare()  # now, since a decoder that compiles looks like one that hangs
        rng = np.random.default_rng(seed)
        self.messages = {}
        for numel in (*NUMELS, *LONG):
            x = rng.standard_normal(numel).astype(np.float32) ** 3
            message = compressor.fresh().encode(x, (seed, 1, 0, 0)).buffer.copy()
            self.messages[numel] = message, compressor.decode(Payload(message))


def every_compressor():
    """Return an object for each set of options that a compressor takes."""
    made = []
    for name in compressors.available():
        known = compressors.options_of(name)
        values = [OPTIONS[option] for option in known if option in OPTIONS]
        names = [option for option in known if option in OPTIONS]
        for chosen in itertools.product(*values):
            try:
                made.append(compressors.from_name(name, **dict(zip(names, chosen, strict=True))))
            except ValueError:
                continue  # bits=8 with fewer levels, 32 that are none of this one's
    return made


def put(message, at, form, value):
    if len(message) >= at + struct.calcsize(form):
        struct.pack_into(form, message, at, value)


def flip(rng, message, start, end, most):
    for _ in range(rng.randint(1, most)):
        if end > start:
            message[rng.randrange(start, end)] ^= 1 << rng.randrange(8)


class Damage:
    """What is done to a message: bytes and their kind, given a source of chance."""

    def __init__(self, cases):
        self._cases = cases

    def untouched(self, rng, case, numel, message):
        pass

    def cut(self, rng, case, numel, message):
        del message[rng.randrange(len(message)) :]

    def lengthen(self, rng, case, numel, message):
        message += rng.randbytes(rng.choice((1, 3, 4, 8, 64)))

    def header(self, rng, case, numel, message):
        flip(rng, message, 0, HEADER_NBYTES, 3)

    def body(self, rng, case, numel, message):
        flip(rng, message, HEADER_NBYTES, len(message), 8)

    def lengths(self, rng, case, numel, message):
        words = (len(message) - HEADER_NBYTES) // 4
        if words:
            # not aligned: behind the byte that entropy codes have
            at = HEADER_NBYTES + 4 * rng.randrange(words) + rng.randrange(2)
            put(
                message,
                at,
                "<I",
                rng.choice(EXTREMES) if rng.random() < 0.7 else rng.getrandbits(32),
            )

    def noise(self, rng, case, numel, message):
        message[HEADER_NBYTES:] = rng.randbytes(len(message) - HEADER_NBYTES)

    def all_noise(self, rng, case, numel, message):
        message[:] = rng.randbytes(rng.randrange(200))

    def other_numel(self, rng, case, numel, message):
        put(message, _NUMEL_AT, "<Q", rng.choice((*NUMELS, 2**31 - 1, 2**31, 2**63, 2**64 - 1)))

    def other_message(self, rng, case, numel, message):
        message[:] = case.messages[rng.choice(NUMELS)][0].tobytes()

    def other_compressor(self, rng, case, numel, message):
        message[:] = rng.choice(self._cases).messages[numel][0].tobytes()
        if rng.random() < 0.5:
            put(message, _CONFIGURATION_AT, "<I", case.compressor.configuration)

    def refusal(self, rng, case, numel, message):
        del message[HEADER_NBYTES:]
        put(message, _SIZE_AT, "<Q", HEADER_NBYTES)

    def kinds(self):
        return [k for k in dir(self) if k[0] != "_" and k != "kinds"]


class Fuzzer:
    def __init__(self, seed):
        self.seed = seed
        self.cases = [Case(c, i) for i, c in enumerate(every_compressor())]
        self.damage = Damage(self.cases)
        self.kinds = self.damage.kinds()
        self.counts = collections.Counter()
        self._message = Guarded(
            max(len(m) for c in self.cases for m, _ in c.messages.values()) + 256
        )
        self._target = Guarded(4 * max(LONG) + 4096)

    def one(self, number):
        """Make payload `number` and look what becomes of it; raises AssertionError."""
        rng = random.Random(self.seed << 40 | number)
        case = rng.choice(self.cases)
        numel = rng.choice(LONG if rng.random() < 0.02 else NUMELS)
        kind = rng.choice(self.kinds)
        valid, values = case.messages[numel]
        message = bytearray(valid.tobytes())
        getattr(self.damage, kind)(rng, case, numel, message)
        if rng.random() < 0.6:
            put(message, _SIZE_AT, "<Q", len(message))  # else only the header's word is tried
        buffer, _, _ = self._message.last(len(message), 16)
        buffer[:] = np.frombuffer(message, np.uint8)
        payload = Payload(buffer)
        decoded = self._decode(case, payload, numel)
        added = self._accumulate(case, payload, numel, valid, rng.randrange(3))
        assert buffer.tobytes() == bytes(message), "the message was written to"
        assert (decoded is None) == (added is None), "decode() and accumulate_all() disagree"
        if decoded is not None:
            self._check_length(case.compressor, bytes(message), numel)
        if kind == "untouched":
            assert decoded is not None and np.array_equal(decoded, values), "a good message"
        self.counts[kind, decoded is not None] += 1

    def _run(self, numel, action):
        """Return the target, float32[numel], after action(target); None if it was refused."""
        out, before, behind = self._target.last(4 * numel, 4)
        near = before[-1024:]
        near.view(np.float32)[:] = CANARY
        target = out.view(np.float32)
        target[:] = CANARY
        refused = False
        try:
            action(target)
        except ValueError as error:
            assert str(error), "an error that says nothing"
            refused = True
        assert not behind.size and (near == 0x5A).all(), "wrote before the target"
        return target, refused

    def _decode(self, case, payload, numel):
        def action(target):
            case.compressor.decode(payload, target)

        target, refused = self._run(numel, action)
        return None if refused else target.copy()

    def _accumulate(self, case, payload, numel, valid, place):
        messages = [(Payload(valid), 0.5), (Payload(valid), 0.25)]
        messages.insert(place, (payload, 0.25))

        def action(target):
            case.compressor.accumulate_all(messages, target)

        target, refused = self._run(numel, action)
        assert not refused or (target == CANARY).all(), "refused, and added something"
        return None if refused else target

    def _check_length(self, compressor, message, numel):
        nbytes, claimed = (struct.unpack_from("<Q", message, at)[0] for at in (_SIZE_AT, _NUMEL_AT))
        assert (nbytes, claimed) == (len(message), numel), "another length was accepted"
        least, most = compressor.least_body_nbytes(numel), compressor.body_nbytes(numel)
        body = len(message) - HEADER_NBYTES
        assert least <= body <= most or (body == 0 and numel), "another length was accepted"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payloads", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    faulthandler.enable()
    np.seterr(all="ignore")  # scales that are no numbers
    fuzzer, start = Fuzzer(args.seed), time.monotonic()
    for number in range(args.payloads):
        if number % _ARM_EVERY == 0:
            faulthandler.dump_traceback_later(_HANG_S, exit=True)
        try:
            fuzzer.one(number)
        except BaseException:
            print(f"payload {number} of seed {args.seed}:", file=sys.stderr)
            raise
    faulthandler.cancel_dump_traceback_later()
    print(f"{len(fuzzer.cases)} compressors; {'kind':16} refused  decoded")
    for kind in fuzzer.kinds:
        print(f"{kind:16} {fuzzer.counts[kind, False]:8} {fuzzer.counts[kind, True]:8}")
    seconds = time.monotonic() - start
    print(f"{sum(fuzzer.counts.values())} payloads in {seconds:.0f} s: none went astray")


if __name__ == "__main__":
    main()
