"""The example's flags: every choice is there, and what does not go together is said."""

import sys

import pytest

import decentral
import decentral_topologies
import flags

NOT_OPTIONS = {"topology", "compressor"}  # which have flags of their own


def parsed(monkeypatch, text):
    monkeypatch.setattr(sys, "argv", ["ecd_resnet.py", *text.split()])
    return flags.parse_args()


def made(monkeypatch, text):
    args = parsed(monkeypatch, text)
    flags.check(args)
    return flags.make_algorithm(args)


def test_every_option_of_an_algorithm_has_a_flag():
    names = decentral.algorithms.available()
    options = {option for name in names for option in decentral.algorithms.options_of(name)}
    assert set(flags.ALGORITHM) == options - NOT_OPTIONS


def test_every_option_of_a_topology_has_a_flag():
    names = decentral_topologies.available(from_size=None)
    options = {option for name in names for option in decentral_topologies.options_of(name)}
    assert set(flags.TOPOLOGY) == options - {"seed"}  # --seed is the run's; the graph stays


@pytest.mark.parametrize("name", decentral.algorithms.available())
def test_every_algorithm_can_be_chosen(name, monkeypatch):
    compressor = "none" if name in ("d-psgd", "sgp", "qg-dsgdm") else "nuqsgd"
    compressor = "intsgd" if name == "intdiana" else compressor
    algorithm = made(monkeypatch, f"--algorithm {name} --compressor {compressor}")
    assert algorithm.name == name


@pytest.mark.parametrize("name", decentral_topologies.available())
def test_every_topology_can_be_chosen(name, monkeypatch):
    algorithm = made(monkeypatch, f"--algorithm sgp --compressor none --topology {name}")
    assert algorithm.topology(8).name == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--topology torus --rows 1 --columns 8", "Torus(8, rows=1, columns=8)"),
        ("--topology torus3d --planes 2 --rows 2", "Torus3D(8, planes=2, rows=2, columns=2)"),
        ("--topology random-regular --degree 4", "RandomRegular(8, degree=4, seed=0)"),
    ],
)
def test_topologies_take_their_options(text, expected, monkeypatch):
    assert repr(made(monkeypatch, text).topology(8)) == expected


def test_a_clusters_wiring_is_read(tmp_path, monkeypatch):
    wiring = tmp_path / "wiring"
    wiring.write_text("0 1  # a comment\n1 2\n2 0\n2 3 \n")
    text = f"--topology graph --edges {wiring}"
    graph = made(monkeypatch, text).topology(4)
    assert graph.edges() == decentral_topologies.Graph.read(wiring).edges()
    with pytest.raises(ValueError, match=r"two different ranks in 0\.\.2"):
        made(monkeypatch, text).topology(3)


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("--algorithm choco-sgd --gamma 0.25", "gamma", 0.25),
        ("--algorithm choco-sgd --gamma theorem", "gamma", "theorem"),
        ("--algorithm deepsqueeze --gamma 0.1", "gamma", 0.1),
        ("--algorithm ecd-psgd --horizon 4", "horizon", 4),
        ("--algorithm ecd-psgd", "published", False),
        ("--algorithm ecd-psgd --published", "published", True),
        ("--algorithm qg-dsgdm --compressor none --beta 0.5", "beta", 0.5),
        ("--algorithm allreduce --exchange all-gather", "exchange", "all-gather"),
    ],
)
def test_algorithms_take_their_options(text, attribute, value, monkeypatch):
    assert getattr(made(monkeypatch, text), attribute) == value


MISTAKES = {
    "--algorithm dcd-psgd --gamma 0.5": "'dcd-psgd' has no option 'gamma'; it takes topology",
    "--algorithm dcd-psgd --published": "'dcd-psgd' has no option 'published'",
    "--algorithm allreduce --horizon 9": "'allreduce' has no option 'horizon'",
    "--gamma theorem": "'ecd-psgd' has no option 'gamma'",
    "--algorithm choco-sgd --gamma much": r"gamma must be in \(0, 1\], 'theorem' or None, got 'mu",
    "--algorithm deepsqueeze --gamma theorem": r"gamma must be in \(0, 1\] or None, got 'theorem'",
    "--algorithm sgp": "needs compressor 'none'",
    "--algorithm allreduce --average-every 5": "--average-every is of gossip",
    "--topology rong": "name must be one of ring, torus",
    "--evaluate all": "--evaluate must be averaged or each, got 'all'",
    "--partition sorted": "--partition must be one of iid, dirichlet",
    "--partition dirichlet": "needs an --alpha",
    "--alpha 0.1": "iid takes none; add --partition dirichlet",
    "--epochs 0": "--epochs of at least 1",
    "--resume": "--resume needs the --checkpoint-dir",
    "--checkpoint-every 5": "--checkpoint-every needs the --checkpoint-dir",
    "--max-steps 0": "--max-steps must be above 0, got 0",
    "--timeout -1": "--timeout must be above 0, got -1",
    "--on-failure retry": "--on-failure must be stop or continue, got 'retry'",
    "--device tpu": "--device must be auto, cpu or cuda, got 'tpu'",
    "--published --horizon 5": "--horizon 5: with --published t goes on for ever",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_seen_before_mpi_starts(text, monkeypatch):
    with pytest.raises(ValueError, match=MISTAKES[text]):
        made(monkeypatch, text)


def test_a_size_without_such_a_graph_names_the_topologies_of_that_size(monkeypatch):
    with pytest.raises(ValueError, match=r"power of two, got 6.*with 6 ranks: ring, torus, ") as e:
        made(monkeypatch, "--topology hypercube").topology(6)
    assert "hypercube" not in str(e.value).split("with 6 ranks")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--topology torus --rows 4", "rows .*4"),
        ("--topology ring --rows 4", "ring: takes no options, got 'rows'"),
        ("--topology graph", "graph: edges must be given"),
    ],
)
def test_other_mistakes_name_no_other_topologies(text, message, monkeypatch):
    with pytest.raises(ValueError, match=message) as error:
        made(monkeypatch, text).topology(6)
    assert "with 6 ranks" not in str(error.value)


def test_a_missing_wiring_file_is_an_oserror(monkeypatch):
    """Which the example reports like the others, and names its flag."""
    with pytest.raises(OSError, match=r"--edges /nowhere: expected a file that can be read, got: "):
        made(monkeypatch, "--topology graph --edges /nowhere").topology(4)


def test_what_reproduces_a_run(monkeypatch):
    text = "--algorithm choco-sgd --gamma 0.5 --local-steps 2 --partition dirichlet --alpha 0.3"
    found = flags.reproducing(parsed(monkeypatch, text))
    expected = {"gamma": 0.5, "local_steps": 2, "partition": "dirichlet", "alpha": 0.3, "seed": 0}
    assert expected.items() <= found.items()
    assert {"published", "rows", "exchange"}.isdisjoint(found)
    assert "alpha" not in flags.reproducing(parsed(monkeypatch, ""))


def test_a_resumed_run_keeps_its_flags_but_not_its_end(monkeypatch):
    begun = flags.begun_with(parsed(monkeypatch, "--epochs 1 --checkpoint-dir D"))
    assert set(begun) == set(flags.REPRODUCING)
    flags.check_resumed(parsed(monkeypatch, "--epochs 1 --max-steps 5 --checkpoint-dir E"), begun)
    args = parsed(monkeypatch, "--epochs 3 --checkpoint-dir D")
    with pytest.raises(ValueError) as error:
        flags.check_resumed(args, begun)
    assert str(error.value) == (
        "--epochs 3: the run in D was begun with --epochs 1, which its schedule is laid out for; "
        "resume with that, or begin anew in another --checkpoint-dir"
    )
    args = parsed(monkeypatch, "--epochs 1 --partition dirichlet --alpha 0.5")
    with pytest.raises(
        ValueError, match=r"--alpha 0\.5: .* begun with --partition iid, no --alpha"
    ):
        flags.check_resumed(args, begun)


def test_help_tells_defaults_where_there_are_any_and_every_option_in_full(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parsed(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert "per rank (default: 16)" in text and "full averages (default: 0)" in text
    assert "None" not in text and "False" not in text and "likewise" not in text
    assert "how many rows; without it, sides are as equal as can be" in text
