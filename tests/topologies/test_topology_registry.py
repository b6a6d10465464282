"""Names for the command line and the algorithms: what is known, and what the errors say."""

import subprocess
import sys
from pathlib import Path

import pytest

import decentral_topologies
from decentral_topologies import Complete, Ring, Torus, available, from_name, options_of

STATIC = ("ring", "torus", "complete", "path", "grid", "torus3d", "star", "hypercube")


def test_the_registry_names_classes():
    assert available() == (*STATIC, "random-regular", "exponential", "one-peer-exponential")
    assert available(from_size=None) == (*available(), "graph")
    for name, family in {"ring": Ring, "torus": Torus, "complete": Complete}.items():
        assert type(from_name(name, 6)) is family and family.name == name
    assert options_of("torus") == ("rows", "columns") and options_of("ring") == ()
    assert from_name("torus", 12, columns=6) == Torus(12, rows=2)
    assert from_name("graph", 3, edges=[(0, 1), (1, 2)]).degree(1) == 2


def test_the_registry_lists_by_property():
    assert available(directed=False, time_varying=False) == (*STATIC, "random-regular")
    assert available(directed=True) == ("exponential", "one-peer-exponential")
    assert available(time_varying=True) == ("one-peer-exponential",)
    assert available(from_size=False) == ("graph",)
    assert set(available()) - set(available(6)) == {"hypercube"} and available(8) == available()
    for size in range(1, 65):
        for name in available(size):
            assert from_name(name, size).size == size


def test_a_rank_of_100000_is_asked_without_a_matrix():
    for name in available():
        size = 2**17 if name == "hypercube" else 100_000
        topology = from_name(name, size)
        if name != "complete":  # its row alone is the answer
            assert abs(sum(topology.weights(size - 1, 5).values()) - 1) < 1e-12
            assert len(topology.neighbors(size - 1, 5)) < 40


@pytest.mark.parametrize("name", available(from_size=None))
@pytest.mark.parametrize("bad", [0, -1, 2.0, "4", None, True])
def test_a_bad_size_is_refused(name, bad):
    with pytest.raises(ValueError) as error:
        from_name(name, bad)
    assert str(error.value) == (
        f"{name}: size must be an int >= 1, got {bad!r}; pass the number of ranks"
    )


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError) as error:
        from_name("mesh", 4)
    assert str(error.value) == (
        f"topology: name must be one of {', '.join(available(from_size=None))}, got 'mesh'"
    )


def test_an_unknown_option_names_those_it_takes():
    with pytest.raises(ValueError) as error:
        from_name("torus", 4, row=2)
    assert str(error.value) == (
        "torus: options must be among rows, columns, got 'row'; leave it out"
    )
    with pytest.raises(ValueError) as error:
        from_name("ring", 4, rows=2)
    assert str(error.value) == "ring: takes no options, got 'rows'; leave it out"


def test_importing_it_loads_no_drawing_and_no_training_library():
    heavy = ["networkx", "matplotlib", "torch", "numba", "mpi4py", "decentral"]
    code = f"import sys, decentral_topologies; print([m for m in {heavy} if m in sys.modules])"
    root = Path(decentral_topologies.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
