"""Data-parallel PyTorch training over MPI that sends far fewer bytes.

Importing it starts neither MPI nor CUDA.
"""

from . import algorithms, communicators, compressors
from ._version import __version__
from .compressors import NotFiniteError
from .consistency import InconsistentError
from .lsvrg import LSVRG
from .optimizer import DistributedOptimizer
from .startup import MismatchError

__all__ = [
    "LSVRG",
    "DistributedOptimizer",
    "InconsistentError",
    "MismatchError",
    "NotFiniteError",
    "__version__",
    "algorithms",
    "communicators",
    "compressors",
]
