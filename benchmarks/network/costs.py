"""What a host pays for messages, while all hosts pay it: predict.py starts it on all of them.

RANK=... WORLD_SIZE=... python costs.py --addresses A B C D --compressors none nuqsgd

A line of JSON per host: bits per second through its interface when all hosts send at once, each to
both neighbors on a ring, and to all others; then the speed of the compressors.
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


class Mesh:
    """Connections of every host with every other, one in each direction."""

    def __init__(self, rank, addresses):
        n = len(addresses)
        server = socket.create_server((addresses[rank], _PORT))
        self._to = {j: _connect(addresses[j]) for j in range(n) if j != rank}
        for connection in self._to.values():
            connection.sendall(bytes([rank]))
        accepted = [server.accept()[0] for _ in self._to]
        self._from = {connection.recv(1)[0]: connection for connection in accepted}
        both = sorted({(rank - 1) % n, (rank + 1) % n})
        self.patterns = {  # to whom, and from whom
            "neighbors": (both, both),
            "all": (list(self._to), list(self._from)),
        }

    def wait(self):
        """Return when all hosts have come here."""
        for connection in self._to.values():
            connection.sendall(b"!")
        for connection in self._from.values():
            connection.recv(1)

    def bits_per_s(self, pattern, nbytes):
        """Return what goes through the interface when so many bytes are sent, and received."""
        to, sources = self.patterns[pattern]
        each = nbytes // len(to)
        data = bytes(each)
        threads = [threading.Thread(target=self._to[j].sendall, args=(data,)) for j in to]
        threads += [threading.Thread(target=_receive, args=(self._from[j], each)) for j in sources]
        self.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 8 * each * len(to) / (time.perf_counter() - start)


def _receive(connection, nbytes):
    buffer = bytearray(1 << 20)
    while nbytes:
        nbytes -= connection.recv_into(buffer, min(nbytes, len(buffer)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addresses", nargs="+", required=True)
    parser.add_argument("--compressors", nargs="+", default=["none"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--mb", type=float, default=10, help="sent by every host at a time")
    parser.add_argument("--tries", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as worker.py
    mesh = Mesh(int(os.environ["RANK"]), args.addresses)
    nbytes = int(args.mb * 1e6)
    found = {
        pattern: [mesh.bits_per_s(pattern, nbytes) for _ in range(args.tries)]
        for pattern in mesh.patterns
    }
    for name in args.compressors:
        options = {"bits": args.bits} if name not in ("none", "intsgd") else {}
        c = decentral.compressors.from_name(name, **options)
        mesh.wait()
        found[f"coding {name}"] = measure_coding(c)._asdict()
    record(found)


if __name__ == "__main__":
    main()
