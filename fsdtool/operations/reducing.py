"""Means and sums over dimensions other than the batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fsdtool.operations.base import Operation, Options, Parameters


class Reduce(Operation):
    """The mean or the sum over the dimensions `dim`."""

    names = ("mean", "sum")

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(inputs[0], self.name)(options["dim"], options["keepdim"])
