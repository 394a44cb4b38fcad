"""Where a signal has its examples: in front, as every step but a plain function expects, or where the model has them.

A sequence may come first, and windows or heads may be counted together with the examples: then dimension `dim` has
`factor` entries of each, one after the other (`outer` true: the example changes slowest) or in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fsdtool.network.operations.base import FUNCTION, Operation, Options, Parameters


def example_shape(shape: Sequence[int], dim: int, factor: int) -> tuple[int, ...]:
    """The shape of one example in a tensor of this shape with `factor` entries of each at `dim`."""
    rest = (*shape[:dim], *shape[dim + 1 :])
    return rest if factor == 1 else (factor, *rest)


class BatchFirst(Operation):
    """The signal with one row for each example: (batch, ...), or (batch, factor, ...) of a factor over one."""

    names = ("batch_first",)
    kind = FUNCTION

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        x, factor = inputs[0].movedim(options["dim"], 0), options["factor"]
        if factor == 1:
            return x
        count = x.shape[0] // factor
        return x.unflatten(0, (count, factor)) if options["outer"] else x.unflatten(0, (factor, count)).transpose(0, 1)


class BatchAt(Operation):
    """The inverse of BatchFirst with the same options."""

    names = ("batch_at",)
    kind = FUNCTION

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        x = inputs[0]
        if options["factor"] > 1:
            x = (x if options["outer"] else x.transpose(0, 1)).flatten(0, 1)
        return x.movedim(0, options["dim"])

    def shape(self, output: Tensor, options: Options) -> tuple[int, ...]:
        return example_shape(output.shape, options["dim"], options["factor"])
