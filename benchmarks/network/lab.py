"""Several hosts with links of a chosen speed on one machine, from Linux network namespaces.

    with Lab(hosts=4, rate="1gbit") as lab:
        records = lab.mpi(["worker.py", "--flag"], timeout=60).records

Every host is a namespace with one interface, eth0, shaped in both directions; one namespace more is
the switch. Hosts have a name and a /dev/shm of their own, so that no library takes a short cut. All
traffic stays inside; namespaces and processes are gone afterwards. Needs root and iproute2.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jobs

_SUBNET = "10.77.0"
_NAME = re.compile(r"^decentral-(\d+)-\w+$")  # of namespaces and folders, by owner
_ENTER = """#!/bin/sh
# ADDRESS COMMAND...: run the command on the host with this address, as a remote shell would.
host="$1"; shift
exec ip netns exec "{prefix}-h${{host##*.}}" unshare -u -m --propagation private sh -c \\
    'hostname "$0" && mount -t tmpfs tmpfs /dev/shm && exec sh -c "$*"' "host${{host##*.}}" "$@"
"""


def why_not():
    """Return what is missing for a lab on this machine, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root: run it as root, for example in a container"
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: install iproute2 and util-linux"
    return None


def _run(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _is_dead(pid):
    return not Path(f"/proc/{pid}").exists()


def _namespaces(owner=None):
    """Return the namespaces of labs: the owner's, or of owners that no longer live."""
    found = []
    for line in _run("ip", "netns", "list").splitlines():
        if match := _NAME.match(line.split()[0]):
            if int(match[1]) == owner or (owner is None and _is_dead(match[1])):
                found.append(match[0])
    return found


def _end_processes(names):
    """Kill everything that runs in these namespaces."""
    for _ in range(20):
        pids = {int(p) for n in names for p in _run("ip", "netns", "pids", n, check=False).split()}
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.1)


def _remove(names):
    _end_processes(names)
    for name in names:
        _run("ip", "netns", "delete", name, check=False)


def _remove_leftovers():
    """Remove what killed runs have left behind."""
    _remove(_namespaces())
    for folder in Path(tempfile.gettempdir()).glob("decentral-*-*"):
        if (match := _NAME.match(folder.name)) and _is_dead(match[1]):
            shutil.rmtree(folder, ignore_errors=True)


class Lab:
    """`hosts` hosts, whose links carry `rate` (tc's words, as 1gbit; None: as fast as it goes).

    Raises:
        SystemExit: the machine cannot do it; the message says what is missing.
    """

    def __init__(self, hosts, rate=None):
        if missing := why_not():
            raise SystemExit(f"lab: {missing}")
        self.hosts, self.rate = hosts, rate
        self.addresses = [f"{_SUBNET}.{h + 1}" for h in range(hosts)]
        self._prefix = f"decentral-{os.getpid()}"

    def __enter__(self):
        _remove_leftovers()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self._folder = tempfile.TemporaryDirectory(prefix=f"{self._prefix}-")
        self.folder = Path(self._folder.name)
        self.enter = self.folder / "enter"
        self.enter.write_text(_ENTER.format(prefix=self._prefix))
        self.enter.chmod(0o755)
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        _remove(_namespaces(os.getpid()))
        self._folder.cleanup()

    def _build(self):
        switch = f"{self._prefix}-switch"
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        for h, address in enumerate(self.addresses, start=1):
            host, port = f"{self._prefix}-h{h}", f"port{h}"
            _run("ip", "netns", "add", host)
            pair = ["eth0", "netns", host, "type", "veth", "peer", "name", port, "netns", switch]
            _run("ip", "link", "add", *pair)
            _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            for name in ("eth0", "lo"):
                _run("ip", "-n", host, "link", "set", name, "up")
            if self.rate:
                self._shape(host, "eth0")
                self._shape(switch, port)

    def _shape(self, namespace, device):
        words = ["rate", self.rate, "burst", "256kb", "latency", "100ms"]
        _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *words)

    def end_processes(self):
        """Kill what still runs on the hosts."""
        _end_processes(_namespaces(os.getpid()))

    def mpi(self, command, ranks_per_host=1, timeout=300, openmpi=None):
        """Run a Python command with an MPI rank or more on every host; see jobs.mpi."""
        return jobs.mpi(self, command, ranks_per_host, timeout, openmpi)

    def gloo(self, command, ranks_per_host=1, timeout=300):
        """Run a Python command as PyTorch's processes, with gloo; see jobs.gloo."""
        return jobs.gloo(self, command, ranks_per_host, timeout)

    def link_speed(self, seconds=0.5, tries=3):
        """Return what one TCP connection between two hosts carries at best, in bits per second."""
        script = str(Path(__file__).with_name("link.py"))
        command = [script, self.addresses[0], str(seconds)]
        return max(jobs.pair(self, command, seconds + 20)["bits_per_s"] for _ in range(tries))
