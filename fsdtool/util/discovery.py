"""The modules of a package, so that what they hold is found by their being there and listed nowhere."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def module_names(package: str) -> list[str]:
    """The names of a package's modules in alphabetical order, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__))


def modules_of(package: str) -> list[ModuleType]:
    """All modules of a package, imported, in the order of their names."""
    return [import_module(f"{package}.{name}") for name in module_names(package)]


def classes_of(package: str, base: type[T]) -> dict[str, type[T]]:
    """By its `name`, each class below `base` that a module of the package defines, in the order of the modules."""
    modules = modules_of(package)
    defined = [kind for module in modules for kind in vars(module).values() if _is_from(module, kind)]
    below = [kind for kind in defined if issubclass(kind, base) and not inspect.isabstract(kind)]
    return {kind.name: kind for kind in below}  # type: ignore[attr-defined]  # what is found by its name has one


def _is_from(module: ModuleType, value: object) -> bool:
    """Whether a class is defined in the module, not imported there."""
    return isinstance(value, type) and value.__module__ == module.__name__
