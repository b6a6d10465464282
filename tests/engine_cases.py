"""Tasks and messages for the tests of the engine."""

import threading
from types import SimpleNamespace

from decentral.communicators.watch import Watch
from decentral.engine import Engine

SOON = 30  # seconds; only a failure takes so long
MADE = []  # the messages of this test


class Message:
    """What a task waits for; it is there as soon as arrive() is called."""

    def __init__(self):
        self._here = threading.Event()
        MADE.append(self)

    def arrive(self):
        self._here.set()

    @property
    def complete(self):
        return self._here.is_set()

    def poll(self):
        return False

    def wait(self):
        assert self._here.wait(SOON)


class Fails:
    complete = False

    def poll(self):
        raise ConnectionError("cable cut")


def arrived():
    message = Message()
    message.arrive()
    return message


def make(threaded=True):
    """Return an engine of rank 3; all that it asks of a communicator are these three."""
    return Engine(SimpleNamespace(rank=3, spins=0, threaded=threaded, watch=Watch()))


def waits_for(*messages, log=None, name=None, result=None):
    """Return a task that notes each of its segments in the log."""
    for i, message in enumerate(messages):
        if log is not None:
            log.append((name, i))
        yield message
    if log is not None:
        log.append((name, len(messages)))
    return result
