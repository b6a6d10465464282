"""Algorithms by name and as objects; each paper is one file."""

from __future__ import annotations

from typing import Any

from ..compressors.base import Compressor
from ..registry import Registry
from .all_reduce import AllReduce
from .base import Algorithm, GradientAlgorithm
from .choco_sgd import ChocoSGD
from .cocod_sgd import CoCoDSGD
from .d_psgd import DPSGD
from .dcd_psgd import DCDPSGD
from .deep_squeeze import DeepSqueeze
from .ecd_psgd import ECDPSGD
from .gossip import GossipAlgorithm, TopologyLike
from .int_diana import IntDIANA
from .qg_dsgdm import QGDSGDm
from .sgp import SGP

# A paper is its own file and a line here.
_REGISTRY: Registry[Algorithm] = Registry(
    "algorithm",
    AllReduce,
    IntDIANA,
    DPSGD,
    DCDPSGD,
    ECDPSGD,
    ChocoSGD,
    DeepSqueeze,
    SGP,
    QGDSGDm,
    CoCoDSGD,
)


def available() -> tuple[str, ...]:
    """Return the known names."""
    return _REGISTRY.names()


def options_of(name: str) -> tuple[str, ...]:
    """Return the names of the options that an algorithm takes.

    Raises:
        ValueError: the name is not known.
    """
    return _REGISTRY.options_of(name)


def from_name(
    name: str,
    topology: TopologyLike = "ring",
    compressor: Compressor | None = None,
    **options: Any,
) -> Algorithm:
    """Return an algorithm, e.g. from_name("ecd-psgd", topology="ring", compressor=c).

    A training script passes both of its flags to whichever algorithm; one that involves all ranks
    has no use for the topology.

    Raises:
        ValueError: the name, the topology's name or an option is not known.
    """
    if "topology" in _REGISTRY.options_of(name):
        options["topology"] = topology
    return _REGISTRY.create(name, compressor=compressor, **options)


__all__ = [
    "DCDPSGD",
    "DPSGD",
    "ECDPSGD",
    "SGP",
    "Algorithm",
    "AllReduce",
    "ChocoSGD",
    "CoCoDSGD",
    "DeepSqueeze",
    "GossipAlgorithm",
    "GradientAlgorithm",
    "IntDIANA",
    "QGDSGDm",
    "available",
    "from_name",
    "options_of",
]
