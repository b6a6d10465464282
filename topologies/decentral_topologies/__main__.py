"""Show a topology: python -m decentral_topologies torus 12 [--output torus.png]."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from decentral_topologies import available, from_name, options_of
from decentral_topologies.draw import draw, to_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the text picture of a topology, and write the drawing where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m decentral_topologies", description="Show a topology."
    )
    names = available(from_size=None)
    parser.add_argument("name", help=", ".join(names))
    parser.add_argument("size", type=int, help="number of ranks")
    parser.add_argument("--output", metavar="FILE", help="write a drawing: .png, .svg, .pdf")
    options = sorted({option for name in names for option in options_of(name)})
    for option in options:
        takers = ", ".join(name for name in names if option in options_of(name))
        parser.add_argument(f"--{option}", type=_value, metavar="X", help=f"of {takers}")
    given = parser.parse_args(arguments)
    chosen = {option: getattr(given, option) for option in options}
    try:
        topology = from_name(
            given.name,
            given.size,
            **{key: value for key, value in chosen.items() if value is not None},
        )
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without line characters
        print(to_text(topology))
        if given.output:
            draw(topology, given.output)
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))


def _value(text: str) -> int | float | str:
    """Return a number if it is one; whether the option may be one, its topology says."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


if __name__ == "__main__":
    main()
