"""Compressors by name and as objects; each paper is one file."""

from __future__ import annotations

from typing import Any

from ..registry import Registry
from .base import Compressor
from .checks import NotFiniteError
from .ef_signsgd import EFSignSGD
from .heuristic_intsgd import HeuristicIntSGD
from .identity import Identity
from .intsgd import IntSGD
from .natural import Natural
from .nuqsgd import NUQSGD
from .qsgd import QSGD, QSGDInf
from .terngrad import TernGrad

_REGISTRY: Registry[Compressor] = Registry(
    "compressor",
    Identity,
    QSGD,
    QSGDInf,
    NUQSGD,
    TernGrad,
    Natural,
    EFSignSGD,
    IntSGD,
    HeuristicIntSGD,
)


def available() -> tuple[str, ...]:
    """Return the known names."""
    return _REGISTRY.names()


def options_of(name: str) -> tuple[str, ...]:
    """Return the names of the options that a compressor takes.

    Raises:
        ValueError: the name is not known.
    """
    return _REGISTRY.options_of(name)


def from_name(name: str, **options: Any) -> Compressor:
    """Return a compressor, e.g. from_name("nuqsgd", bits=4, block_size=8192).

    Raises:
        ValueError: the name or an option is not known, or an option is out of range.
    """
    return _REGISTRY.create(name, **options)


__all__ = [
    "NUQSGD",
    "QSGD",
    "Compressor",
    "EFSignSGD",
    "HeuristicIntSGD",
    "Identity",
    "IntSGD",
    "Natural",
    "NotFiniteError",
    "QSGDInf",
    "TernGrad",
    "available",
    "from_name",
    "options_of",
]
