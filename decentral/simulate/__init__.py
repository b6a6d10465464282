"""n workers in one process and one thread: the same algorithms, compressors and topologies.

`import decentral` does not import it. docs/simulate.md says what is the same as in a real run.
"""

from .simulation import Simulation

__all__ = ["Simulation"]
