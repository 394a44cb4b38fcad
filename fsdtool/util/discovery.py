"""The modules of a package, so that what they hold is found by their being there and listed nowhere."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType


def module_names(package: str) -> list[str]:
    """The names of a package's modules in alphabetical order, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__))


def modules_of(package: str) -> list[ModuleType]:
    """All modules of a package, imported, in the order of their names."""
    return [import_module(f"{package}.{name}") for name in module_names(package)]
