"""Public names of a room, imported when they are first asked for: a short command does not wait for torch."""

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
