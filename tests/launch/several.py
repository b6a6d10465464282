"""Run the example several times in one job, as if each were one: ranks take seconds to start.

mpirun -n 4 python tests/launch/several.py "--topology torus" "--algorithm d-psgd ..."
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import ecd_resnet

for flags in sys.argv[1:]:
    sys.argv[1:] = flags.split()
    ecd_resnet.main()
