"""Max pooling in one to three dimensions: a gate that keeps, of each window, the position of the maximum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import MAXIMUM, Gated, Options, Parameters, Step
from fsdtool.network.operations.calls import Call
from fsdtool.network.operations.pooling import read_pool


class MaximumPool(Gated):
    """Maxima over windows of a signal (batch, channels, *positions).

    Held are their places (batch, channels, P) in the signal's flattened positions.
    """

    modules: ClassVar[dict[type[nn.Module], str]] = {
        **{getattr(nn, f"MaxPool{d}d"): f"max_pool{d}d" for d in (1, 2, 3)},
        **{getattr(nn, f"AdaptiveMaxPool{d}d"): f"adaptive_max_pool{d}d" for d in (1, 2, 3)},
    }
    names = tuple(modules.values())
    kind = MAXIMUM
    spellings = tuple(modules)
    function_names = names

    @classmethod
    def variant(cls, call: Call) -> str:
        return cls.modules.get(call.target, call.name)

    @classmethod
    def read(cls, call: Call) -> Any:
        return read_pool(call, cls.variant(call), ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], **options)

    def hold(self, step: Step, s: Tensor) -> tuple[Tensor | None, ...]:
        _, positions = getattr(F, self.name)(s, return_indices=True, **step.options)
        return (positions.flatten(2),)

    def replay(self, step: Step, s: Tensor, held: tuple[Tensor | None, ...]) -> Tensor:
        (positions,) = held
        assert positions is not None
        return s.flatten(2).gather(2, positions).unflatten(2, step.shape[1:])
