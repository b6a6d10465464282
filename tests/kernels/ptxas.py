"""What NVIDIA's assembler says of a kernel, on a machine without a GPU."""

import importlib.metadata
import re
import subprocess
from typing import NamedTuple


class Report(NamedTuple):
    """Registers of a thread, bytes of shared memory of a block, bytes of local memory."""

    registers: int
    shared: int
    stack: int
    spilled: int


def assemble(ptx, capability, registers=255):
    """Return the Report of the one kernel in some PTX, which gets at most so many registers.

    Needs the wheel nvidia-cuda-nvcc.
    """
    files = importlib.metadata.files("nvidia-cuda-nvcc") or ()
    ptxas = next(f for f in files if f.name == "ptxas").locate()
    arch = f"-arch=sm_{capability[0]}{capability[1]}"
    done = subprocess.run(
        [ptxas, "-v", arch, f"-maxrregcount={registers}", "-o", "/dev/null", "/dev/stdin"],
        input=ptx,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said

    def number(what):
        found = re.findall(what, said)
        assert len(found) <= 1, said
        return int(found[0]) if found else 0

    used = number(r"Used (\d+) registers")
    assert used, said
    return Report(
        used,
        number(r"(\d+) bytes smem"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
    )
