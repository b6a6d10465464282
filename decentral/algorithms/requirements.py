"""What gossip algorithms ask of a compressor, and what they say to another one."""

from __future__ import annotations

from .base import Algorithm


def check_unbiased(algorithm: Algorithm) -> None:
    """Raise ValueError if the noise of its compressor does not average out."""
    if not algorithm.compressor.unbiased:
        raise ValueError(
            f"{algorithm.name}: needs an unbiased compressor, got {algorithm.compressor!r}; use "
            "nuqsgd or another unbiased one here, or this one with allreduce"
        )


def check_lossless(algorithm: Algorithm) -> None:
    """Raise ValueError if its compressor rounds: whole parameters do not converge rounded."""
    if not algorithm.compressor.lossless:
        raise ValueError(
            f"{algorithm.name}: sends the parameters themselves and needs compressor 'none', got "
            f"{algorithm.compressor!r}; use ecd-psgd with it"
        )


def check_stateless(algorithm: Algorithm) -> None:
    """Raise ValueError if its compressor feeds errors back, which the algorithm does itself."""
    if algorithm.compressor.stateful:
        raise ValueError(
            f"{algorithm.name}: feeds back what its compressor loses, and needs one that does not "
            f"do so itself, got {algorithm.compressor!r}; use it with allreduce"
        )
