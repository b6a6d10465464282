"""The example in docs/simulate.md runs."""

import re
from pathlib import Path

import torch

GUIDE = Path(__file__).parents[2] / "docs" / "simulate.md"


def test_the_example(capsys):
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    scope = {}
    exec(code, scope)
    assert "'workers': 64" in capsys.readouterr().out
    assert scope["accuracy"] > 0.7
