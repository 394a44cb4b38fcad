"""Values by name from a file that nobody vouches for, each checked for its type when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError


class Fields:
    """The values that json gave for an object.

    refuse: makes the error for what is missing or of another type, from words that name it.
    """

    def __init__(self, values: Any, refuse: Callable[[str], FsdtoolError]):
        self._values, self._refuse = values if isinstance(values, Mapping) else {}, refuse

    def get(self, key: str) -> Any:
        """The value as it is; FsdtoolError where there is none, as of all that follow."""
        if key not in self._values:
            raise self._refuse(f"'{key}' is missing")
        return self._values[key]

    def text(self, key: str) -> str:
        """A text."""
        return self._checked(key, "text", lambda value: isinstance(value, str))

    def integer(self, key: str) -> int:
        """A whole number of at most 8 bytes."""
        return int(self._checked(key, "a whole number", is_whole))

    def number(self, key: str) -> float:
        """A finite number."""
        return float(self._checked(key, "a finite number", _is_finite))

    def flag(self, key: str) -> bool:
        """True or false."""
        return bool(self._checked(key, "true or false", lambda value: isinstance(value, (bool, np.bool_))))

    def texts(self, key: str) -> tuple[str, ...]:
        """Some texts."""
        return tuple(self._checked(key, "a list of texts", _are_texts))

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        """Some pairs of texts."""
        return tuple(tuple(pair) for pair in self._checked(key, "a list of pairs of texts", _are_pairs))

    def mapping(self, key: str) -> dict[str, Any]:
        """Values by name, of any type."""
        return self._checked(key, "values by name", lambda value: isinstance(value, dict))

    def named_texts(self, key: str) -> dict[str, str]:
        """Texts by name."""
        return self._checked(key, "texts by name", _are_named_texts)

    def _checked(self, key: str, expected: str, fits: Callable[[Any], bool]) -> Any:
        value = self.get(key)
        if not fits(value):
            raise self._refuse(f"'{key}' holds {value!r:.60}, expected {expected}")
        return value


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of at most 8 bytes."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and -(2**63) <= value < 2**63


def _is_finite(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, (float, np.floating)) and math.isfinite(value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_named_texts(value: Any) -> bool:
    return isinstance(value, dict) and _are_texts(list(value.values()))


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_are_texts(pair) and len(pair) == 2 for pair in value)
