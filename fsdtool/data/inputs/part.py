"""One of the inputs that a network takes: where the data have it, and as what the network gets it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsdtool.util.fields import is_whole

NUMBERS, WHOLE, TRUTH, UNUSED = "float32", "int64", "bool", "unused"
DTYPES = (NUMBERS, WHOLE, TRUTH, UNUSED)
LARGEST = 2**31  # numbers of one example


@dataclass(frozen=True)
class Part:
    """key: the array, column or key of an item that holds it.  name: the argument of the network's forward, '' for the
    next by position.  shape: of one example, () for a single number.  dtype: 'float32', 'int64', 'bool', or 'unused'
    where the network has no argument of this name.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Numbers of one example."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        named = f"{self.name}=" if self.name and self.name != self.key else ""
        return f"{named}{self.key or 'the input'} {self.shape} {self.dtype}"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Part:
        """From the values of its fields.  Raises KeyError, TypeError or ValueError for anything else."""
        found = cls(value["key"], value["name"], tuple(value["shape"]), value["dtype"])
        texts = isinstance(found.key, str) and isinstance(found.name, str)
        if not (texts and all(is_whole(n) and n > 0 for n in found.shape)) or found.size > LARGEST:
            raise ValueError(f"an input {value}")
        if found.dtype not in DTYPES:
            raise ValueError(f"an input of the dtype {found.dtype}")
        return found


def listed(parts: Sequence[Part]) -> str:
    """All of them, for people."""
    return ", ".join(map(str, parts))
