import os
import pathlib
import subprocess
import sys

import pytest

import decentral_topologies
from decentral_topologies import (
    Complete,
    Exponential,
    Graph,
    Grid,
    OnePeerExponential,
    Path,
    Placed,
    Ring,
    Star,
    Torus,
    Torus3D,
    available,
    from_name,
)
from decentral_topologies.__main__ import main
from decentral_topologies.draw import draw, to_text

RING_5 = """\
╭─ 0 ── 1 ── 2 ─╮
╰──── 4 ── 3 ───╯
ring of 5: 5 edges, degree 2, spectral gap 0.461"""

RING_8 = """\
╭─ 0 ── 1 ── 2 ── 3 ─╮
╰─ 7 ── 6 ── 5 ── 4 ─╯
ring of 8: 8 edges, degree 2, spectral gap 0.195"""

TORUS_8 = """\
╌ 0 ── 1 ── 2 ── 3 ╌
  │    │    │    │
╌ 4 ── 5 ── 6 ── 7 ╌
torus of 8: 12 edges, degree 3, spectral gap 0.5"""

TORUS_12 = """\
   ╎     ╎     ╎     ╎
╌  0 ──  1 ──  2 ──  3 ╌
   │     │     │     │
╌  4 ──  5 ──  6 ──  7 ╌
   │     │     │     │
╌  8 ──  9 ── 10 ── 11 ╌
   ╎     ╎     ╎     ╎
torus of 12: 24 edges, degree 4, spectral gap 0.4"""

TORUS_2_BY_2 = """\
0 ── 1
│    │
2 ── 3
torus of 4: 4 edges, degree 2, spectral gap 0.667"""

COMPLETE_4 = """\
0: 1 2 3
1: 0 2 3
2: 0 1 3
3: 0 1 2
complete of 4: 6 edges, degree 3, spectral gap 1"""

STAR_4 = """\
0: 1 2 3
1: 0
2: 0
3: 0
star of 4: 3 edges, degree 1 to 3, spectral gap 0.25"""

GRID_6 = """\
0 ── 1 ── 2
│    │    │
3 ── 4 ── 5
grid of 6: 7 edges, degree 2 to 3, spectral gap 0.25"""

EXPONENTIAL_5 = """\
0 → 1 2 4
1 → 0 2 3
2 → 1 3 4
3 → 0 2 4
4 → 0 1 3
exponential of 5: 15 directed edges, degree 3, spectral gap 0.75"""

ONE_PEER_3 = """\
0 → 1
1 → 2
2 → 0
one-peer-exponential of 3: 3 directed edges, degree 1, spectral gap 0.75
this is step 0 of 2; the gap is that of all of them"""


@pytest.mark.parametrize(
    ("topology", "text"),
    [
        (Ring(1), "0\nring of 1: 0 edges, degree 0, spectral gap 1"),
        (Ring(2), "0 ── 1\nring of 2: 1 edge, degree 1, spectral gap 1"),
        (Ring(5), RING_5),
        (Ring(8), RING_8),
        (Torus(4), TORUS_2_BY_2),
        (Torus(8), TORUS_8),
        (Torus(12), TORUS_12),
        (Complete(1), "0\ncomplete of 1: 0 edges, degree 0, spectral gap 1"),
        (Complete(4), COMPLETE_4),
        (Path(3), "0 ── 1 ── 2\npath of 3: 2 edges, degree 1 to 2, spectral gap 0.333"),
        (Star(4), STAR_4),
        (Grid(6), GRID_6),
        (Exponential(5), EXPONENTIAL_5),
        (OnePeerExponential(3), ONE_PEER_3),
        (Graph(2, [(0, 1)]), "0: 1\n1: 0\ngraph of 2: 1 edge, degree 1, spectral gap 1"),
    ],
    ids=repr,
)
def test_the_text_picture(topology, text):
    assert to_text(topology) == text


@pytest.mark.parametrize("name", available())
def test_a_large_picture_fits_a_terminal(name):
    size = 12 * 12 if name in available(12 * 12) else 128
    lines = to_text(from_name(name, size)).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 26
    assert any("…" in line or "⋮" in line for line in lines)
    picture = " ".join(lines[:-1])
    assert all(str(rank) in picture for rank in (0, 1, 2, size - 2, size - 1))


def segments(axes):
    """How many straight and how many bent edges were drawn."""
    straight = sum(len(c.get_segments()) for c in axes.collections if hasattr(c, "get_segments"))
    return straight, len(axes.patches)


@pytest.mark.parametrize(
    ("topology", "straight", "bent"),
    [
        (Ring(1), 0, 0),
        (Ring(8), 8, 0),
        (Complete(6), 15, 0),
        (Torus(8), 10, 2),
        (Torus(12), 17, 7),
        (Torus(7, rows=1), 6, 1),
        (Path(3), 2, 0),
        (Star(7), 6, 0),
        (Grid(6), 7, 0),
        (Torus3D(27), 54, 27),
        (Placed(Ring(4), (0, 2, 1, 3)), 4, 0),
    ],
    ids=repr,
)
def test_every_edge_is_drawn_and_a_wrap_is_bent(topology, straight, bent):
    pytest.importorskip("networkx", reason="drawing needs networkx")
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    (axes,) = draw(topology).axes
    assert segments(axes) == (straight, bent)
    assert sorted(int(text.get_text()) for text in axes.texts) == list(range(topology.size))
    assert axes.get_title() == to_text(topology).splitlines()[-1]


@pytest.mark.parametrize("topology", [Exponential(6), OnePeerExponential(6)], ids=repr)
def test_directed_edges_are_arrows_that_end_at_the_receiver(topology):
    pytest.importorskip("networkx", reason="drawing needs networkx")
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    (axes,) = draw(topology).axes
    at = {text.get_position(): int(text.get_text()) for text in axes.texts}
    ends = [tuple(at[tuple(end)] for end in arrow._posA_posB) for arrow in axes.patches]
    assert sorted(ends) == list(topology.edges())
    assert {arrow.get_arrowstyle().arrow for arrow in axes.patches} == {"-|>"}
    assert to_text(topology).endswith(axes.get_title())


def test_it_draws_into_given_axes():
    pytest.importorskip("networkx", reason="drawing needs networkx")
    figure = pytest.importorskip("matplotlib.figure", reason="drawing needs matplotlib").Figure()
    left, right = figure.subplots(1, 2)
    assert draw(Ring(4), right) is figure
    assert not left.texts and len(right.texts) == 4


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_it_writes_a_file(tmp_path, suffix, start):
    pytest.importorskip("networkx", reason="drawing needs networkx")
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    path = tmp_path / f"torus.{suffix}"
    draw(Torus(12), path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("missing", ["networkx", "matplotlib.figure"])
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, missing):
    for module in ("networkx", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None if module == missing else sys)
    with pytest.raises(ImportError) as error:
        draw(Ring(4))
    assert f"draw: needs {missing}" in str(error.value)
    assert str(error.value).endswith("pip install decentral[examples]")


def test_the_command_prints_the_picture():
    root = pathlib.Path(decentral_topologies.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-m", "decentral_topologies", "torus", "12"],
        cwd=root, capture_output=True, encoding="utf8", timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, TORUS_12 + "\n")


def test_the_command_passes_options_and_writes_the_drawing(capsys, tmp_path):
    pytest.importorskip("networkx", reason="drawing needs networkx")
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    path = tmp_path / "t.png"
    main(["torus", "8", "--rows", "1", "--output", str(path)])
    assert capsys.readouterr().out == to_text(Torus(8, rows=1)) + "\n"
    assert path.read_bytes().startswith(b"\x89PNG")


NAMES = ", ".join(available(from_size=None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mesh", "4"], f"topology: name must be one of {NAMES}, got 'mesh'"),
        (["ring", "0"], "ring: size must be an int >= 1, got 0; pass the number of ranks"),
        (
            ["torus", "4", "--rows", "2.5"],
            "torus: rows must be an int >= 1, got 2.5; use one of 1, 2, 4",
        ),
        (
            ["graph", "4"],
            "graph: edges must be given, got none; pass pairs (i, j), triples (i, j, weight), "
            "a networkx graph or the path of a file of them",
        ),
        (
            ["graph", "4", "--edges", "/nowhere"],
            "[Errno 2] No such file or directory: '/nowhere'",
        ),
        (["ring", "4", "--rows", "2"], "ring: takes no options, got 'rows'; leave it out"),
    ],
)
def test_the_command_reports_a_mistake_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


@pytest.mark.parametrize(
    ("arguments", "topology"),
    [
        ("random-regular 8 --degree 4 --seed 3", "RandomRegular(8, degree=4, seed=3)"),
        ("torus3d 16 --planes 1 --rows 2", "Torus3D(16, planes=1, rows=2, columns=8)"),
        ("graph 3 --edges {file}", "Graph(3, edges=[(0, 1, 0.25), (1, 2, 0.5)])"),
        ("one-peer-exponential 6", "OnePeerExponential(6)"),
    ],
)
def test_the_command_takes_every_family_and_its_options(capsys, tmp_path, arguments, topology):
    file = tmp_path / "wiring.txt"
    file.write_text("0 1 .25\n1 2 .5\n")
    main(arguments.format(file=file).split())
    made = eval(topology, vars(decentral_topologies).copy())
    assert capsys.readouterr().out == to_text(made) + "\n"


def test_the_command_knows_every_name_and_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert NAMES in shown
    assert "--rows X of torus, grid, torus3d" in shown and "--edges X of graph" in shown


def test_a_terminal_without_line_characters_gets_the_picture_still():
    root = pathlib.Path(decentral_topologies.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "decentral_topologies", "ring", "4"],
        cwd=root, capture_output=True, encoding="ascii", timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "?? 0 ?? 1 ??"
