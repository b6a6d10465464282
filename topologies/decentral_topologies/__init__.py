"""Topologies for decentralized averaging: who talks to whom, and with which weights."""

from __future__ import annotations

import inspect
from typing import Any

from decentral_topologies.complete import Complete
from decentral_topologies.exponential import Exponential
from decentral_topologies.graph import Topology
from decentral_topologies.grid import Grid
from decentral_topologies.hypercube import Hypercube
from decentral_topologies.one_peer import OnePeerExponential
from decentral_topologies.path import Path
from decentral_topologies.placement import Placed, crossing, place
from decentral_topologies.random_regular import RandomRegular
from decentral_topologies.ring import Ring
from decentral_topologies.star import Star
from decentral_topologies.torus import Torus
from decentral_topologies.torus3d import Torus3D
from decentral_topologies.wiring import Graph

__all__ = [
    "Complete",
    "Exponential",
    "Graph",
    "Grid",
    "Hypercube",
    "OnePeerExponential",
    "Path",
    "Placed",
    "RandomRegular",
    "Ring",
    "Star",
    "Topology",
    "Torus",
    "Torus3D",
    "available",
    "crossing",
    "from_name",
    "options_of",
    "place",
]

# A new family needs its own file and its line here.
_FAMILIES: tuple[type[Topology], ...] = (
    Ring,
    Torus,
    Complete,
    Path,
    Grid,
    Torus3D,
    Star,
    Hypercube,
    RandomRegular,
    Exponential,
    OnePeerExponential,
    Graph,
)
_BY_NAME = {family.name: family for family in _FAMILIES}


def available(
    size: int | None = None,
    *,
    directed: bool | None = None,
    time_varying: bool | None = None,
    from_size: bool | None = True,
) -> tuple[str, ...]:
    """Return the names that from_name knows, of the families asked for.

    Args:
        size: only those that have a graph of so many ranks: `hypercube` has none of 6.
        directed: only those whose edges go one way, or only those whose edges go both ways.
        time_varying: only those that change with the step, or only those that do not.
        from_size: None adds what needs more than a size: `graph`, which needs its edges.
    """

    def fits(asked: bool | None, is_so: bool) -> bool:
        return asked is None or asked == is_so

    return tuple(
        name
        for name, family in _BY_NAME.items()
        if (size is None or family.exists(size))
        and fits(directed, family.directed)
        and fits(time_varying, family.time_varying)
        and fits(from_size, family.from_size)
    )


def options_of(name: str) -> tuple[str, ...]:
    """Return the options that a topology takes besides size; Raises ValueError on unknown names."""
    if name not in _BY_NAME:
        raise ValueError(f"topology: name must be one of {', '.join(_BY_NAME)}, got {name!r}")
    return tuple(inspect.signature(_BY_NAME[name]).parameters)[1:]


def from_name(name: str, size: int, **options: Any) -> Topology:
    """Return the topology of that name over `size` ranks.

    Raises ValueError on an unknown name, an option that the topology does not take, or a bad value.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            takes = f"options must be among {', '.join(known)}" if known else "takes no options"
            raise ValueError(f"{name}: {takes}, got {option!r}; leave it out")
    return _BY_NAME[name](size, **options)
