"""The gates of one run of a graph, kept so that other weights can be run under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsdtool.network.operations.base import Step, gated

Held = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Gates:
    """The gates of an activation step on n samples: its output is m s + c.

    m (n, ...) slopes, c (n, ...) intercepts (None: zero).  breaks: where the function's breaks moved to, each of one
    sample's shape; none where the gates stay those that were drawn.
    """

    m: Tensor
    c: Tensor | None
    breaks: Sequence[Tensor] = ()


@dataclass
class Tape:
    """The gates of one run; under other weights they stay as they are, so that the network is linear in its signal.

    held: by step, what a replay needs of each example: of an activation its slope m and intercept c (None: zero), of
    a maximum its position.
    """

    held: dict[str, Held] = field(default_factory=dict)

    def hold_activation(self, step: Step, s: Tensor, gates: Gates) -> None:
        """Take in the gates that an activation step had on the signal s (n, ...)."""
        self.held[step.name] = gates.m, gates.c

    def hold_maximum(self, step: Step, positions: Held) -> None:
        """Take in the positions that a maximum chose."""
        self.held[step.name] = positions

    def replay(self, step: Step, s: Tensor) -> Tensor:
        """The output (n, ...) of a gate step for the signal s (n, ...)."""
        return gated(step).replay(step, s, self.held[step.name])

    def select(self, rows: Tensor) -> Tape:
        """The gates of some of the examples."""
        return type(self)({name: tuple(_some(part, rows) for part in parts) for name, parts in self.held.items()})

    def double(self) -> Tape:
        """The same in float64; positions, which are whole numbers, as they are."""
        return type(self)({name: tuple(map(_doubled, parts)) for name, parts in self.held.items()})

    @classmethod
    def concatenate(cls, tapes: Sequence[Tape]) -> Tape:
        """The gates of several batches as of one."""
        columns = {name: zip(*(tape.held[name] for tape in tapes), strict=True) for name in tapes[0].held}
        return cls({name: tuple(_joined(parts) for parts in column) for name, column in columns.items()})


def _some(part: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if part is None else part[rows]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])


def _doubled(part: Tensor | None) -> Tensor | None:
    return part.double() if part is not None and part.is_floating_point() else part
