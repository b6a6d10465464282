"""A formula of numbers, applied to vectors: each coordinate is read once and written once.

NumPy and torch do one operation of a formula at a time, and each passes over memory again. Here the
formula stands once, as a function of numbers: numba makes one loop of it for the CPU, and tensors
on a GPU go through the function as they are.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import Any

import numpy as np

from .backend import GRAIN
from .threads import share

_INF = 0x7F800000  # float32's, as an integer; what is larger is NaN
Number = Any  # what a formula's parameters are: a number, an array or a tensor


class Elementwise:
    """A function that is to be applied to vectors; use it as a decorator.

        @Elementwise
        def mix(x, y, weight: float):
            return x + weight * (y - x), y - x

        finite = mix(x, y, 0.5)

    What the function returns, a tuple, replaces the first of the vectors, float32[n], all of one
    length; parameters annotated as float are numbers. It may use + - * / and its parameters. The
    result of the call is whether all that was written is finite.
    """

    def __init__(self, function: Callable[..., tuple[Any, ...]]) -> None:
        self.function = function
        parameters = inspect.signature(function).parameters.values()
        self._numbers = [p.name for p in parameters if p.annotation in (float, "float")]
        self._vectors = [p.name for p in parameters if p.name not in self._numbers]
        self._written = self._vectors[: len(function(*(1.0 for _ in parameters)))]

    def __call__(self, *arguments: Any) -> bool:
        """Apply the function; arguments are NumPy arrays, or CUDA tensors, and numbers."""
        return self.on(*arguments)(slice(0, len(arguments[0])))

    def on(self, *arguments: Any) -> Callable[[slice], bool]:
        """Return what applies the function to a part of these vectors, and makes little of a call.

        The part is a slice with a start and a stop, and no step.
        """
        vectors, numbers = arguments[: len(self._vectors)], arguments[len(self._vectors) :]
        if not isinstance(vectors[0], np.ndarray):
            return lambda part: self._apply([v[part] for v in vectors], numbers)
        loop, numbers = self._loop, tuple(map(np.float32, numbers))

        def run(first: int, last: int) -> bool:
            return bool(loop(*[v[first:last] for v in vectors], *numbers) < _INF)

        def apply(part: slice) -> bool:
            first, n = part.start, part.stop - part.start
            if n <= GRAIN:
                return run(first, part.stop)
            return all(share(lambda a, b: run(first + a, first + b), n, GRAIN))

        return apply

    def _apply(self, vectors: Sequence[Any], numbers: Sequence[float]) -> bool:
        """Apply the function to tensors, an operation after the other."""
        results = self.function(*vectors, *numbers)
        for vector, result in zip(vectors, results, strict=False):
            vector.copy_(result)
        finite = [vector.isfinite().all() for vector, _ in zip(vectors, results, strict=False)]
        return bool(reduce(operator.and_, finite))  # one answer to wait for

    def compile(self) -> None:
        """Compile the loop for the CPU, or load it from the disk cache, so that no call has to."""
        _ = self._loop

    @cached_property
    def _loop(self) -> Any:
        from numba import float32, njit, types, uint32

        from .cpu_parts import ABS, bits_of

        name = f"{self.function.__name__}_loop"
        elements = [f"{v}[i]" for v in self._vectors]
        text = [
            f"def {name}({', '.join([*self._vectors, *self._numbers])}):",
            "    largest = u32(0)",
            f"    for i in range({self._vectors[0]}.size):",
            f"        results = function({', '.join([*elements, *self._numbers])})",
        ]
        for k, v in enumerate(self._written):
            text.append(f"        {v}[i] = results[{k}]")
            text.append(f"        largest = max(largest, u32(bits_of(results[{k}]) & ABS))")
        text.append("    return largest")
        inline = njit(inline="always")(self.function)
        scope = {"function": inline, "bits_of": bits_of, "u32": np.uint32, "ABS": ABS, "max": max}
        scope["__name__"] = self.function.__module__
        # Numba's disk cache is the formula's file's, and so made anew when that changes.
        exec(compile("\n".join(text), self.function.__code__.co_filename, "exec"), scope)
        vectors = [types.float32[::1]] * len(self._vectors)
        signature = uint32(*vectors, *[float32] * len(self._numbers))
        return njit(signature, nogil=True, cache=True)(scope[name])
