"""Quantize-and-pack, unpack-and-accumulate: the same bytes from NumPy, numba and numba-CUDA."""

from .backend import (
    Around,
    accumulate,
    accumulate_all,
    compile_cpu_kernels,
    decode,
    encode,
    encode_in_parts,
)
from .layout import Quantizer
from .rng import fold_key
from .threads import get_num_threads, set_num_threads

__all__ = [
    "Around",
    "Quantizer",
    "accumulate",
    "accumulate_all",
    "compile_cpu_kernels",
    "decode",
    "encode",
    "encode_in_parts",
    "fold_key",
    "get_num_threads",
    "set_num_threads",
]
