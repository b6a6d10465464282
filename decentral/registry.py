"""Names for the command line: one door for compressors and algorithms; and words for mistakes."""

from __future__ import annotations

import inspect
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def described(value: Any) -> str:
    """Return in words what a value is that is not what was expected."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"the text {value!r}" if isinstance(value, str) else f"one of {type(value).__name__}"


class Registry(Generic[T]):
    """Classes by their attribute `name`, with errors that list what is known."""

    def __init__(self, family: str, *classes: type[T]) -> None:
        self._family = family
        self._classes: dict[str, type[T]] = {getattr(c, "name"): c for c in classes}  # noqa: B009

    def names(self) -> tuple[str, ...]:
        """Return the known names, in the order of registration."""
        return tuple(self._classes)

    def find(self, name: str) -> type[T]:
        """Return the class of that name.

        Raises:
            ValueError: the name is not known.
        """
        if name not in self._classes:
            known = ", ".join(self._classes)
            raise ValueError(f"unknown {self._family} {name!r}; known are: {known}")
        return self._classes[name]

    def options_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the options that the class of that name takes."""
        return tuple(inspect.signature(self.find(name)).parameters)

    def create(self, name: str, **options: Any) -> T:
        """Return an instance.

        Raises:
            ValueError: the name or an option is not known.
        """
        known = self.options_of(name)
        for option in options:
            if option not in known:
                takes = f"takes {', '.join(known)}" if known else "takes no options"
                raise ValueError(f"{self._family} {name!r} has no option {option!r}; it {takes}")
        return self.find(name)(**options)
