"""Means and sums over dimensions other than the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsdtool.network.operations.base import Operation, Options, Parameters
from fsdtool.network.operations.calls import Call


class Reduce(Operation):
    """The mean or the sum over the dimensions `dim`."""

    names = ("mean", "sum")
    spellings = (torch.mean, torch.sum, "mean", "sum")

    @classmethod
    def read(cls, call: Call) -> Any:
        given = call.given(("dim", "keepdim"))
        dims = given.get("dim", given.get("axis"))
        dims = dims if isinstance(dims, (tuple, list)) else (dims,)
        rank = len(call.shape(call.source)) + 1
        if any(not isinstance(d, int) or d % rank == 0 for d in dims):
            return call.refuse("a mean or sum over the batch")
        options = {"dim": tuple(d % rank for d in dims), "keepdim": bool(given.get("keepdim", False))}
        return call.add(call.name, call.source, options=options)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(inputs[0], self.name)(options["dim"], options["keepdim"])
