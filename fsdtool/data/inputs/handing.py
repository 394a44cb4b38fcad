"""Packed rows to what a network takes: cut, in their shapes, whole numbers as int64 and truth values as bool.

It is done by a hook before the network's forward, so that whatever runs or records the network sees it as part of it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fsdtool.data.inputs.part import NUMBERS, TRUTH, UNUSED, WHOLE, Part


class HandOver:
    """A hook before forward: of one tensor (B, sum of sizes), or (B, *shape) of a single part, its arguments."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = tuple(parts)

    def __call__(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        (x,) = given
        taken, by_name, start = [], {}, 0
        for part in self.parts:
            piece = x if len(self.parts) == 1 else x[:, start : start + part.size]
            start += part.size
            if part.dtype == UNUSED:
                continue
            value = _as(part, piece)
            if part.name:
                by_name[part.name] = value
            else:
                taken.append(value)
        return tuple(taken), by_name


def _as(part: Part, x: Tensor) -> Tensor:
    if tuple(x.shape[1:]) != part.shape:
        x = x.unflatten(1, part.shape) if part.shape else x[:, 0]
    if part.dtype == WHOLE:
        return x.long()
    return x.bool() if part.dtype == TRUTH else x


def hand_over(model: nn.Module, parts: Sequence[Part]) -> RemovableHandle | None:
    """From now on the model takes packed rows of these parts; nothing changes where there are none, or it does so."""
    if not parts or any(isinstance(hook, HandOver) for hook in model._forward_pre_hooks.values()):
        return None
    return model.register_forward_pre_hook(HandOver(parts), with_kwargs=True)


@contextlib.contextmanager
def handing(model: nn.Module, parts: Sequence[Part]) -> Iterator[None]:
    """Within it, the model takes packed rows of these parts, as it may do already."""
    handle = hand_over(model, parts)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def fitting_names(model: nn.Module, parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts, those that the model's forward has no argument for as unused."""
    taken = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return tuple(parts)
    names = {parameter.name for parameter in taken}
    return tuple(replace(p, dtype=UNUSED) if p.name and p.name not in names else p for p in parts)


def readings(part: Part) -> tuple[Part, ...]:
    """As what a network may take a part: as it is; whole numbers as float32 too, a single one as a vector as well."""
    if part.dtype != WHOLE:
        return (part,)
    numbers = replace(part, dtype=NUMBERS)
    return (part, numbers) if part.shape else (part, numbers, replace(numbers, shape=(1,)))
