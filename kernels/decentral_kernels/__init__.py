"""Quantize-and-pack, unpack-and-accumulate: the same bytes from NumPy, numba and numba-CUDA."""

from .backend import accumulate, accumulate_all, compile_cpu_kernels, decode, encode
from .layout import Quantizer
from .rng import fold_key
from .threads import get_num_threads, set_num_threads

__all__ = [
    "Quantizer",
    "accumulate",
    "accumulate_all",
    "compile_cpu_kernels",
    "decode",
    "encode",
    "fold_key",
    "get_num_threads",
    "set_num_threads",
]
