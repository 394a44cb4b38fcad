"""The operations that a network may be made of, one module for each family.

An operation is a subclass of Operation with a name: what it computes, whether it is affine, which weights or gates it
has, and how torch spells it.  Every module of this package is imported here, and a class in it counts as soon as it is
defined, so that a new operation is a new file.
"""

from __future__ import annotations

import importlib
import pkgutil

from fsdtool.operations.base import Operation, named, names

__all__ = ["Operation", "named", "names"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
