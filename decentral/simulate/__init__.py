"""Training in one process, and on paper: what it does and costs, before there is a cluster.

Simulation runs n workers in one thread, with the same algorithms, compressors and topologies;
predict() says how long a step takes over given links. `import decentral` does not import it.
docs/simulate.md says what is the same as in a real run.
"""

from __future__ import annotations

from .links import Link, Links
from .measure import CodingSpeed, measure_coding
from .predict import Machine, StepTime, bytes_sent, predict
from .simulation import Simulation
from .workload import Workload

__all__ = [
    "CodingSpeed",
    "Link",
    "Links",
    "Machine",
    "Simulation",
    "StepTime",
    "Workload",
    "bytes_sent",
    "measure_coding",
    "predict",
]
