"""Names for the command line: what is known, and what the errors say."""

import inspect
import re

import pytest

import decentral
from decentral.registry import Registry


class Plain:
    name = "plain"


class Tuned:
    name = "tuned"

    def __init__(self, depth=3, width=5):
        self.depth, self.width = depth, width


TOOLS = Registry("tool", Tuned, Plain)
FAMILIES = pytest.mark.parametrize("family", (decentral.algorithms, decentral.compressors))


def test_names_keep_the_order_of_registration():
    assert TOOLS.names() == ("tuned", "plain")


def test_create_passes_the_options():
    tuned = TOOLS.create("tuned", width=7)
    assert isinstance(tuned, Tuned) and (tuned.depth, tuned.width) == (3, 7)
    assert isinstance(TOOLS.create("plain"), Plain)


def test_find_and_options_of():
    assert TOOLS.find("plain") is Plain
    assert TOOLS.options_of("tuned") == ("depth", "width")
    assert TOOLS.options_of("plain") == ()


@pytest.mark.parametrize("ask", (TOOLS.create, TOOLS.find, TOOLS.options_of))
def test_an_unknown_name_lists_the_known_ones(ask):
    with pytest.raises(ValueError, match=r"^unknown tool 'tuna'; known are: tuned, plain$"):
        ask("tuna")


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"^tool 'tuned' has no option 'hue'; it takes depth, width$"
    ):
        TOOLS.create("tuned", depth=1, hue=2)
    with pytest.raises(
        ValueError, match=r"^tool 'plain' has no option 'hue'; it takes no options$"
    ):
        TOOLS.create("plain", hue=2)


@FAMILIES
def test_a_family_answers_by_name(family):
    """A subclass that forgets its `name` would hide its parent, and so would a repeated name."""
    assert len(set(family.available())) == len(family.available()) > 0
    for name in family.available():
        made = family.from_name(name)
        assert made.name == name == vars(type(made))["name"]
        assert getattr(family, type(made).__name__) is type(made)
        assert family.options_of(name) == tuple(inspect.signature(type(made)).parameters)


@FAMILIES
def test_a_family_s_errors_name_it(family):
    kind = family.__name__.rsplit(".")[-1].rstrip("s")
    known = re.escape(", ".join(family.available()))
    for ask in (family.from_name, family.options_of):
        with pytest.raises(ValueError, match=f"unknown {kind} 'nonesuch'; known are: {known}"):
            ask("nonesuch")
    name = family.available()[0]
    with pytest.raises(ValueError, match=f"{kind} '{name}' has no option 'hue'"):
        family.from_name(name, hue=1)


def test_an_algorithm_that_needs_no_topology_ignores_the_flag():
    for name in decentral.algorithms.available():
        made = decentral.algorithms.from_name(name, topology="torus")
        takes = "topology" in decentral.algorithms.options_of(name)
        assert (getattr(made, "topology", None) == "torus") == takes
