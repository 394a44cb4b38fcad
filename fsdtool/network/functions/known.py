"""Which functions of torch are known, and how a file names them.

A function is named as torch spells it: 'F.softmax' of torch.nn.functional, 'torch.softmax', or 'Tensor.softmax' for the
method, whose arguments may differ.  Only registered ones can be named, so that a file runs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PLACES: dict[str, Any] = {"F": F, "torch": torch, "Tensor": Tensor}
_KNOWN: dict[str, Callable[..., Any]] = {}


def register(*names: str) -> None:
    """Make known the functions of these names, wherever torch has them: as functions and as methods.

    Each must be a function of its arguments alone, and change none of them.  Raises ValueError for a name that is
    nowhere, or known already.
    """
    for name in names:
        everywhere = ((f"{place}.{name}", getattr(owner, name, None)) for place, owner in _PLACES.items())
        found = {spelt: called for spelt, called in everywhere if callable(called)}
        if not found or found.keys() & _KNOWN.keys():
            raise ValueError(f"there is {'no' if not found else 'already a'} function '{name}'")
        _KNOWN.update(found)


def register_as(name: str, function: Callable[..., Any], place: str = "Tensor") -> None:
    """Make known `function` under the name 'Tensor.name', of a property or a method that changes its tensor.

    place: 'Tensor', 'torch' or 'F', of what another function is to be run for.
    """
    if f"{place}.{name}" in _KNOWN:
        raise ValueError(f"there is already a function '{place}.{name}'")
    _KNOWN[f"{place}.{name}"] = function


def function(name: str) -> Callable[..., Any]:
    """The function of this name.  Raises KeyError for one that is not known."""
    return _KNOWN[name]


def is_known(name: str) -> bool:
    """Whether `function` has it."""
    return name in _KNOWN


def spelling(called: Any) -> str:
    """What a function that torch called is named here, known or not: 'F.softmax', 'torch.cat', 'Tensor.add'."""
    owner = getattr(called, "__self__", None)
    if getattr(called, "__name__", "") == "__get__" and owner is not None:  # a property
        return f"Tensor.{owner.__name__}"
    name = getattr(called, "__name__", type(called).__name__)
    if getattr(F, name, None) is called:
        return f"F.{name}"
    return f"torch.{name}" if getattr(torch, name, None) is called else f"Tensor.{name}"
