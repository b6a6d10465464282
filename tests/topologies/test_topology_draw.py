import os
import subprocess
import sys
from pathlib import Path

import pytest

import decentral_topologies
from decentral_topologies import Complete, Ring, Topology, Torus, available, from_name
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

PATH_3 = """\
0: 1
1: 0 2
2: 1
path of 3: 2 edges, degree 1 to 2, spectral gap 0.333"""


class Path3(Topology):
    name = "path"

    def _adjacent(self, rank, step):
        return [rank + d for d in (-1, 1) if 0 <= rank + d < self.size]


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
        (Path3(3), PATH_3),
    ],
    ids=repr,
)
def test_the_text_picture(topology, text):
    assert to_text(topology) == text


@pytest.mark.parametrize("name", available())
def test_a_large_picture_fits_a_terminal(name):
    lines = to_text(from_name(name, 18 * 18)).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 26
    assert any("…" in line for line in lines)
    picture = " ".join(lines[:-1])
    assert all(str(rank) in picture for rank in (0, 1, 2, 322, 323))


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
        (Path3(3), 2, 0),
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
    root = Path(decentral_topologies.__file__).parents[1]
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mesh", "4"], "topology: name must be one of ring, torus, complete, got 'mesh'"),
        (["ring", "0"], "ring: size must be an int >= 1, got 0; pass the number of ranks"),
        (["ring", "4", "--rows", "2"], "ring: takes no options, got 'rows'; leave it out"),
    ],
)
def test_the_command_reports_a_mistake_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


def test_a_terminal_without_line_characters_gets_the_picture_still():
    root = Path(decentral_topologies.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "decentral_topologies", "ring", "4"],
        cwd=root, capture_output=True, encoding="ascii", timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "?? 0 ?? 1 ??"
