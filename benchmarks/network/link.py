"""Measure one TCP connection: rank 0 receives on ADDRESS, rank 1 sends for so many seconds.

RANK=0|1 python benchmarks/network/link.py ADDRESS SECONDS     (lab.py starts both)
"""

import os
import socket
import sys
import time

from jobs import record

_PORT = 18513
_CHUNK = bytes(1 << 18)


def receive(address):
    with socket.create_server((address, _PORT)) as server:
        connection, _ = server.accept()
        with connection:
            buffer, total, start = bytearray(1 << 20), 0, time.perf_counter()
            while count := connection.recv_into(buffer):
                total += count
            seconds = time.perf_counter() - start
    record({"bits_per_s": 8 * total / seconds})


def send(address, seconds):
    deadline = time.perf_counter() + 10
    while True:
        try:
            connection = socket.create_connection((address, _PORT), timeout=10)
            break
        except OSError:  # the other one has not started yet
            if time.perf_counter() > deadline:
                raise
            time.sleep(0.05)
    with connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.sendall(_CHUNK)


if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        receive(sys.argv[1])
    else:
        send(sys.argv[1], float(sys.argv[2]))
