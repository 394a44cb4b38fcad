"""Names that are imported when they are first asked for: a short command does not wait for torch or numpy."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def public(room: str, **names: str) -> tuple[Callable[[str], object], list[str]]:
    """`__getattr__` and `__all__` of the package `room`, which shows `names`: each with the module that defines it."""

    def find(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module '{room}' has no attribute '{name}'")
        return getattr(import_module(f"{room}.{names[name]}"), name)

    return find, sorted(names)


class Later:
    """A module that is imported when a name in it is first asked for.

    Typed as the module itself:

        if TYPE_CHECKING:
            import numpy as np
        else:
            np = Later("numpy")
    """

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(import_module(self._module), name)
