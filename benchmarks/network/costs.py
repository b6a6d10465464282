"""What a host pays for messages, while all hosts pay it: predict.py starts it on all of them.

RANK=... WORLD_SIZE=... python costs.py --addresses A B C D --compressors none nuqsgd

A line of JSON per host: bits per second of one connection to the next host, and of one to each
neighbor on a ring, with traffic in both directions everywhere; then the speed of the compressors.
"""

import argparse
import os
import socket
import threading
import time

import torch
from jobs import record

import decentral
from decentral.simulate import measure_coding

_PORT = 18514


def _connect(address):
    deadline = time.perf_counter() + 60
    while True:
        try:
            return socket.create_connection((address, _PORT), timeout=60)
        except OSError:  # that host has not started yet
            if time.perf_counter() > deadline:
                raise
            time.sleep(0.05)


class Ring:
    """Connections to the neighbors, one in each direction; making them is a barrier."""

    def __init__(self, rank, addresses):
        n = len(addresses)
        self._server = socket.create_server((addresses[rank], _PORT))
        peers = list(dict.fromkeys(((rank + 1) % n, (rank - 1) % n)))
        self._to = {j: _connect(addresses[j]) for j in peers}
        for j in peers:
            self._to[j].sendall(bytes([rank]))
        accepted = [self._server.accept()[0] for _ in peers]
        self._from = {c.recv(1)[0]: c for c in accepted}
        self._next, self._previous = peers[0], (rank - 1) % n
        self.degree = len(peers)

    def wait(self):
        """Return when the neighbors have come here, too, and theirs."""
        for _ in range(len(self._to) * 4):
            for connection in self._to.values():
                connection.sendall(b"!")
            for connection in self._from.values():
                connection.recv(1)

    def seconds(self, nbytes, both):
        """Return the seconds until so many bytes from each source are here, and all are sent."""
        to = self._to.values() if both else [self._to[self._next]]
        sources = self._from.values() if both else [self._from[self._previous]]
        self.wait()
        start = time.perf_counter()
        threads = [threading.Thread(target=c.sendall, args=(bytes(nbytes),)) for c in to]
        threads += [threading.Thread(target=_receive, args=(c, nbytes)) for c in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start


def _receive(connection, nbytes):
    buffer = bytearray(1 << 20)
    while nbytes:
        nbytes -= connection.recv_into(buffer, min(nbytes, len(buffer)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addresses", nargs="+", required=True)
    parser.add_argument("--compressors", nargs="+", default=["none"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--mb", type=float, default=10, help="through every interface")
    parser.add_argument("--tries", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as worker.py
    ring = Ring(int(os.environ["RANK"]), args.addresses)
    found = {}
    for name, both in (("one", False), ("neighbors", True)):
        nbytes = int(args.mb * 1e6)
        each = nbytes // ring.degree if both else nbytes
        found[name] = [8 * nbytes / ring.seconds(each, both) for _ in range(args.tries)]
    for name in args.compressors:
        options = {"bits": args.bits} if name not in ("none", "intsgd") else {}
        c = decentral.compressors.from_name(name, **options)
        ring.wait()
        found[f"coding {name}"] = measure_coding(c)._asdict()
    record(found)


if __name__ == "__main__":
    main()
