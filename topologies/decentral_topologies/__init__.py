"""Topologies for decentralized averaging: who talks to whom, and with which weights."""

from __future__ import annotations

import inspect
from typing import Any

from decentral_topologies.complete import Complete
from decentral_topologies.graph import Topology
from decentral_topologies.ring import Ring
from decentral_topologies.torus import Torus

__all__ = ["Complete", "Ring", "Topology", "Torus", "available", "from_name", "options_of"]

# A new family needs its own file and its line here.
_FAMILIES: tuple[type[Topology], ...] = (
    Ring,
    Torus,
    Complete,
)
_BY_NAME = {family.name: family for family in _FAMILIES}


def available() -> tuple[str, ...]:
    """Return the names that from_name knows."""
    return tuple(_BY_NAME)


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
