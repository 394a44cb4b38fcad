"""Pools in one to three dimensions: averages of windows, and maxima, a gate that keeps the position of the largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import MAXIMUM, Gated, Operation, Options, Parameters, Step
from fsdtool.network.operations.calls import Call


class Pool(Operation):
    """Windows of a signal (batch, channels, *positions), under the name of their function in torch.nn.functional.

    modules: classes that apply it.  windows: its options, of an adaptive one the size of the output is.
    """

    modules: ClassVar[dict[type[nn.Module], str]] = {}
    windows: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def variant(cls, call: Call) -> str:
        return cls.modules.get(call.target, call.name)

    @classmethod
    def read(cls, call: Call) -> Any:
        operation = cls.variant(call)
        if not isinstance(call.value, Tensor):
            return call.refuse("max pooling that returns its indices")
        if call.value.dim() != int(operation[-2]) + 2:
            return call.refuse("a pooling over an input without batch dimension")
        windows = cls.windows[:-1] if operation == "avg_pool1d" else cls.windows  # which has no divisor of its own
        options = call.options(("output_size",) if operation.startswith("adaptive") else windows)
        options = {key: option for key, option in options.items() if option is not None}
        if "output_size" in options:  # None in an output size keeps that dimension
            options["output_size"] = tuple(call.value.shape[2:])
        return call.add(operation, call.source, options=options)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], **options)


class AveragePool(Pool):
    """Means over windows."""

    modules: ClassVar[dict[type[nn.Module], str]] = {
        **{getattr(nn, f"AvgPool{d}d"): f"avg_pool{d}d" for d in (1, 2, 3)},
        **{getattr(nn, f"AdaptiveAvgPool{d}d"): f"adaptive_avg_pool{d}d" for d in (1, 2, 3)},
    }
    names = tuple(modules.values())
    spellings = tuple(modules)
    function_names = names
    windows = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


class MaximumPool(Pool, Gated):
    """Maxima over windows.

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
    windows = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def hold(self, step: Step, s: Tensor) -> tuple[Tensor | None, ...]:
        _, positions = getattr(F, self.name)(s, return_indices=True, **step.options)
        return (positions.flatten(2),)

    def replay(self, step: Step, s: Tensor, held: tuple[Tensor | None, ...]) -> Tensor:
        (positions,) = held
        assert positions is not None
        return s.flatten(2).gather(2, positions).unflatten(2, step.shape[1:])
