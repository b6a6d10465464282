"""Data-parallel PyTorch training over MPI that sends far fewer bytes.

Importing it starts neither MPI nor CUDA.
"""

from . import algorithms, communicators, compressors
from ._version import __version__
from .checkpoints import Checkpoints
from .communicators import RankLostError, WaitTimeoutError
from .compressors import NotFiniteError
from .consistency import InconsistentError
from .lsvrg import LSVRG
from .optimizer import DistributedOptimizer
from .startup import MismatchError
from .stopping import StopRequest

__all__ = [
    "LSVRG",
    "Checkpoints",
    "DistributedOptimizer",
    "InconsistentError",
    "MismatchError",
    "NotFiniteError",
    "RankLostError",
    "StopRequest",
    "WaitTimeoutError",
    "__version__",
    "algorithms",
    "communicators",
    "compressors",
]
