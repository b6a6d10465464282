"""A formula of numbers, applied to vectors: each coordinate is read once and written once.

NumPy and torch do one operation of a formula at a time, and each passes over memory again. Here the
formula stands once, as a function of numbers: numba makes one loop of it for the CPU, and tensors
on a GPU go through the function as they are.
"""

from __future__ import annotations

import inspect
import operator
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np

from .layout import INF, STAMP
from .threads import GRAIN, share

NOT_FINITE = -2  # of in_parts(), where the index of a block is expected: what was made is not
Number = Any  # what a formula's parameters are: a number, an array or a tensor


def fma(a: Number, b: Number, c: Number) -> Number:
    """Return a * b + c, in loops on the CPU rounded once where the processor can, as torch does."""
    return a * b + c


class Applied:
    """A formula with what it is applied to: NumPy arrays, or CUDA tensors, and numbers."""

    def __init__(
        self, formula: Elementwise, vectors: Sequence[Any], numbers: Sequence[float]
    ) -> None:
        self.formula, self.vectors = formula, vectors
        self.numbers = tuple(map(np.float32, numbers))

    def __call__(self) -> bool:
        """Apply it; return whether all that was written is finite."""
        vectors, formula = self.vectors, self.formula
        if not isinstance(vectors[0], np.ndarray):
            return formula.apply_to_tensors(vectors, tuple(map(float, self.numbers)))
        loop = formula.loop

        def run(first: int, last: int) -> bool:
            return bool(loop(*[v[first:last] for v in vectors], *self.numbers) < INF)

        return all(share(run, len(vectors[0]), GRAIN))

    def after(self, first: Applied, at: int) -> Applied:
        """Return what applies `first` and then this, in one pass over memory, to NumPy arrays.

        The first vector of `first` is this one's number `at`.
        """
        formula = in_turn(first.formula, self.formula, at)
        vectors = formula.arranged(first.vectors, self.vectors)
        return Applied(formula, vectors, self.numbers + first.numbers)


class Elementwise:
    """A function that is to be applied to vectors; use it as a decorator.

        @Elementwise
        def mix(x, y, weight: float):
            return x + weight * (y - x), y - x

        finite = mix(x, y, 0.5)

    What the function returns, a tuple, replaces the first of the vectors, float32[n], all of one
    length; parameters annotated as float are numbers. It may use + - * /, fma() and its parameters.
    The result of the call is whether all that was written is finite.
    """

    def __init__(self, function: Callable[..., tuple[Any, ...]]) -> None:
        self.function = function
        parameters = inspect.signature(function).parameters.values()
        self._numbers = [p.name for p in parameters if p.annotation in (float, "float")]
        self._vectors = [p.name for p in parameters if p.name not in self._numbers]
        self._written = self._vectors[: len(function(*(1.0 for _ in parameters)))]

    @property
    def num_vectors(self) -> int:
        """How many vectors it takes, before the numbers."""
        return len(self._vectors)

    @property
    def num_numbers(self) -> int:
        """How many numbers it takes."""
        return len(self._numbers)

    def __call__(self, *arguments: Any) -> bool:
        """Apply the function; arguments are NumPy arrays, or CUDA tensors, and numbers."""
        return self.on(*arguments)()

    def on(self, *arguments: Any) -> Applied:
        """Return what applies the function to these vectors and numbers."""
        return Applied(self, arguments[: self.num_vectors], arguments[self.num_vectors :])

    def apply_to_tensors(self, vectors: Sequence[Any], numbers: Sequence[float]) -> bool:
        """Apply the function to tensors, an operation after the other."""
        results = self.function(*vectors, *numbers)
        for vector, result in zip(vectors, results, strict=False):
            vector.copy_(result)
        finite = [vector.isfinite().all() for vector, _ in zip(vectors, results, strict=False)]
        return bool(reduce(operator.and_, finite))  # one answer to wait for

    def compile(self) -> None:
        """Compile the loop for the CPU, or load it from the disk cache, so that no call has to."""
        _ = self.in_parts

    @cached_property
    def in_parts(self) -> Any:
        """The loop that makes a message by the formula: cpu_in_parts.compile_in_parts()."""
        from .cpu_in_parts import compile_in_parts

        return compile_in_parts(self)

    @cached_property
    def inlined(self) -> Any:
        """The function as compiled ones may call it."""
        from numba import njit

        from . import cpu_parts as cpu_parts  # which has fma()

        return njit(inline="always")(self.function)

    @cached_property
    def loop(self) -> Any:
        """The formula as a loop on the CPU; it returns the bits of the largest |result|."""
        from numba import float32, njit, types, uint32

        from .cpu_parts import ABS, bits_of, wide

        name = f"{self.function.__name__}_loop_{STAMP:08x}"
        elements = [f"{v}[i]" for v in self._vectors]
        text = [
            f"def {name}({', '.join([*self._vectors, *self._numbers])}):",
            "    wide()",
            "    largest = u32(0)",
            f"    for i in range({self._vectors[0]}.size):",
            f"        results = function({', '.join([*elements, *self._numbers])})",
        ]
        for k, v in enumerate(self._written):
            text.append(f"        {v}[i] = results[{k}]")
            text.append(f"        largest = max(largest, u32(bits_of(results[{k}]) & ABS))")
        text.append("    return largest")
        scope = {
            "function": self.inlined,
            "bits_of": bits_of,
            "u32": np.uint32,
            "ABS": ABS,
            "max": max,
        }
        scope["wide"] = wide
        scope["__name__"] = self.function.__module__
        # Numba's disk cache is the formula's file's, and so made anew when that changes; of what
        # else it is made of, the name tells.
        exec(compile("\n".join(text), self.function.__code__.co_filename, "exec"), scope)
        vectors = [types.float32[::1]] * len(self._vectors)
        signature = uint32(*vectors, *[float32] * len(self._numbers))
        return njit(signature, nogil=True, cache=True)(scope[name])


class InTurn(Elementwise):
    """Two formulas, of which the second finds in one of its vectors what the first has made of it.

    That is the first's first vector, and the second's vector number `at`.
    """

    def __init__(self, first: Elementwise, second: Elementwise, at: int) -> None:
        self._formulas, self._at = (first, second), at
        m, n = len(first._written), len(second._written)
        before, after = [range(len(f._vectors)) for f in (first, second)]
        # As for any formula, what is written comes first: (0, i) is the first one's vector i.
        self._order = [(1, i) for i in after if i < n or i == at]
        self._order += [(0, i) for i in before if 0 < i < m]
        self._order += [(1, i) for i in after if i >= n and i != at]
        self._order += [(0, i) for i in before if i >= m]
        super().__init__(self._made_of(first.function, second.function))

    def _made_of(self, first: Any, second: Any) -> Any:
        """Return the function of both functions, compiled ones or not."""
        one, two = self._formulas
        here = f"v1_{self._at}"
        given = [here, *(f"v0_{i}" for i in range(1, len(one._vectors)))]
        then = [f"v1_{i}" for i in range(len(two._vectors))]
        then[self._at] = "made[0]"
        numbers = [[f"n{k}_{i}" for i in range(len(f._numbers))] for k, f in enumerate((one, two))]
        results = [f"result[{i}]" for i in range(len(two._written))]
        results += ["made[0]"] * (self._at >= len(two._written))
        results += [f"made[{i}]" for i in range(1, len(one._written))]
        source = Path(one.function.__code__.co_filename).read_bytes()  # numba looks at the other's
        name = f"{two.function.__name__}_after_{one.function.__name__}"
        name += f"_{self._at}_{zlib.crc32(source):08x}"
        parameters = [f"v{k}_{i}" for k, i in self._order]
        parameters += [f"{n}: float" for n in (*numbers[1], *numbers[0])]
        text = f"""
def {name}({", ".join(parameters)}):
    made = first({", ".join(given + numbers[0])})
    result = second({", ".join(then + numbers[1])})
    return {", ".join(results)},
"""
        scope = {"first": first, "second": second, "__name__": two.function.__module__}
        scope["float"] = float
        exec(compile(text, two.function.__code__.co_filename, "exec"), scope)
        return scope[name]

    @cached_property
    def inlined(self) -> Any:
        """See Elementwise.inlined."""
        from numba import njit

        first, second = self._formulas
        return njit(inline="always")(self._made_of(first.inlined, second.inlined))

    def arranged(self, first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
        """Return the vectors of both formulas as this one takes them."""
        return [(first, second)[k][i] for k, i in self._order]


@lru_cache(maxsize=None)
def in_turn(first: Elementwise, second: Elementwise, at: int) -> InTurn:
    """Return the formula that is both; it is compiled once."""
    return InTurn(first, second, at)
