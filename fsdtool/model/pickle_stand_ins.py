"""What takes the place of everything in a pickle that is neither tensor nor plain data, so that no code runs.

torch's restricted unpickler refuses classes and functions that it does not know, one at a time. Each of them gets a
stand-in here, that takes any arguments and does nothing: no weight depends on a scheduler, on options or on a log.
Arrays of NumPy are rebuilt from their bytes without NumPy's own unpickling, which trusts the file.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

MOST = 500  # stand-ins in one file
# They matter to weights, so nothing may take their place: tensors of torch and what wraps them.
_WEIGHTS = re.compile(r"torch\.(_utils|_tensor|nn\.parameter|jit|sparse|storage|distributed|ao|nested|_subclasses)\b.*")
_NUMPY = re.compile(r"numpy\.(_?core\.multiarray\._reconstruct|_?core\.multiarray\.scalar|dtype)")
_KINDS = re.compile(r"[fiub][1248]")

Made = TypeVar("Made", bound="StandIn")


class StandIn:
    """Takes the place of an object of another type in a pickle, whatever that is built with; it does nothing."""

    name = ""

    def __new__(cls: type[Made], *arguments: object, **named: object) -> Made:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Mapping(StandIn):
    """Of a subclass of dict: a plain mapping does its work."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        return OrderedDict()


class _List(StandIn):
    """Of a subclass of list."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        return []


class _DType(StandIn):
    """Of a NumPy dtype: its code ('f4') and the order of its bytes."""

    code, order = "", "|"

    def __new__(cls, *arguments: object, **named: object) -> _DType:
        made = super().__new__(cls)
        made.code = str(arguments[0]) if arguments else ""
        return made

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.order = str(state[1])


class Array(StandIn):
    """Of a NumPy array: `values` once it is complete and holds numbers, else None."""

    values: np.ndarray | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            return
        _, shape, dtype, fortran, data = state
        plain = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) and isinstance(data, bytes)
        if plain and isinstance(dtype, _DType) and _KINDS.fullmatch(dtype.code) and dtype.order in ("<", ">", "|", "="):
            numbers = np.dtype(dtype.order.replace("|", "=") + dtype.code)
            if math.prod(shape) * numbers.itemsize == len(data):
                self.values = np.frombuffer(data, numbers).reshape(shape, order="F" if fortran else "C")


class StandIns:
    """The stand-ins of one file, by the names that its pickle gives; `serve(error)` adds one more."""

    def __init__(self) -> None:
        self._classes: dict[str, type] = {}

    def allowed(self) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
        """What torch.serialization.safe_globals takes."""
        return [(cls, name) for name, cls in self._classes.items()]

    def serve(self, error: Exception) -> bool:
        """Whether the file may be read again, now that what stopped the unpickler has a stand-in or another one."""
        message = str(error)
        if found := re.search(r"GLOBAL ([\w.]+) was not an allowed global", message):
            name = found[1] if "." in found[1] else f"builtins.{found[1]}"  # torch leaves that out
            if name in self._classes or _WEIGHTS.fullmatch(name) or len(self._classes) == MOST:
                return False
            self._classes[name] = _made(name, _kind(name))
            return True
        if found := re.search(r"Can only (SETITEM|append|extend).* got <class '([\w.]+)'>", message):
            name = found[2] if "." in found[2] else f"builtins.{found[2]}"
            if not issubclass(self._classes.get(name, _Mapping), (_Mapping, _List)):
                self._classes[name] = _made(name, _Mapping if found[1] == "SETITEM" else _List)
                return True
        return False


def _kind(name: str) -> type:
    if found := _NUMPY.fullmatch(name):
        return _DType if found[1] == "dtype" else Array if found[1].endswith("_reconstruct") else StandIn
    return _Mapping if name.endswith(("AttributeDict", "CfgNode", "defaultdict")) else StandIn


def _made(name: str, kind: type) -> type:
    module, _, last = name.rpartition(".")
    return type(last, (kind,), {"name": name, "__module__": module or "builtins", "__qualname__": last})


def as_tensor(value: object) -> torch.Tensor | None:
    """The tensor of numbers that NumPy wrote, as an array or its stand-in; None for anything else."""
    values = value.values if isinstance(value, Array) else value
    if not isinstance(values, np.ndarray) or not _KINDS.fullmatch(values.dtype.kind + str(values.dtype.itemsize)):
        return None
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))


def named_class(value: object) -> str | None:
    """The class that a stand-in, or a class of stand-ins, takes the place of; None where it is no stand-in."""
    cls = value if isinstance(value, type) else type(value)
    return cls.name or None if issubclass(cls, StandIn) else None
