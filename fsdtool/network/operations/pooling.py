"""Average pooling in one to three dimensions, and the options that all pools share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import Operation, Options, Parameters
from fsdtool.network.operations.calls import Call


class AveragePool(Operation):
    """Means over windows of a signal (batch, channels, *positions)."""

    modules: ClassVar[dict[type[nn.Module], str]] = {
        **{getattr(nn, f"AvgPool{d}d"): f"avg_pool{d}d" for d in (1, 2, 3)},
        **{getattr(nn, f"AdaptiveAvgPool{d}d"): f"adaptive_avg_pool{d}d" for d in (1, 2, 3)},
    }
    names = tuple(modules.values())
    spellings = tuple(modules)
    function_names = names

    @classmethod
    def variant(cls, call: Call) -> str:
        return cls.modules.get(call.target, call.name)

    @classmethod
    def read(cls, call: Call) -> Any:
        windows = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        return read_pool(call, cls.variant(call), windows[:-1] if cls.variant(call) == "avg_pool1d" else windows)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], **options)


def read_pool(call: Call, operation: str, windows: tuple[str, ...]) -> Any:
    """A step of a pool; `windows` are the names of its options, of an adaptive one the size of its output is."""
    options = call.options(("output_size",) if operation.startswith("adaptive") else windows)
    if not isinstance(call.value, Tensor):
        return call.refuse("max pooling that returns its indices")
    if call.value.dim() != int(operation[-2]) + 2:
        return call.refuse("a pooling over an input without batch dimension")
    options = {key: option for key, option in options.items() if option is not None}
    if "output_size" in options:  # None in an output size keeps that dimension
        options["output_size"] = tuple(call.value.shape[2:])
    return call.add(operation, call.source, options=options)
