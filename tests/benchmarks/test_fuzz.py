"""benchmarks/fuzz.py at a size of seconds, in a process of its own, since it may end it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Fewer options, since each set of them has kernels of its own to compile.
FEW = """
import sys
sys.path.insert(0, "benchmarks")
import fuzz
fuzz.OPTIONS |= {"bits": (3, 8), "block_size": (7, 8192), "zero_level": (True,)}
fuzz.main()
"""


def test_damaged_messages_are_refused_or_stay_in_their_place():
    command = [sys.executable, "-c", FEW, "--payloads", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "10000 payloads" in done.stdout and "none went astray" in done.stdout
