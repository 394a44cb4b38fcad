"""Sums of signals, and a signal with a number or with a parameter that is added, multiplied or divided by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtool.operations.base import AFFINE, Operation, Options, Parameters, Step, VectorMap


class Add(Operation):
    """a + b of two signals."""

    names = ("add",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] + inputs[-1]


class Subtract(Operation):
    """a - b of two signals."""

    names = ("subtract",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] - inputs[-1]


class Scale(Operation):
    """The signal times the number `factor`."""

    names = ("scale",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] * options["factor"]

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        scale = like.new_full((step.units,), float(step.options["factor"]))
        return VectorMap(scale, torch.zeros_like(scale))


class Shift(Operation):
    """The signal plus the number `constant`."""

    names = ("shift",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] + options["constant"]

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        shift = like.new_full((step.units,), float(step.options["constant"]))
        return VectorMap(torch.ones_like(shift), shift)


class AddParameter(Operation):
    """The signal plus `sign` times a parameter in the view `shape`."""

    names = ("add_parameter",)
    kind = AFFINE

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] + options["sign"] * roles["parameter"].reshape(options["shape"])


class MultiplyParameter(Operation):
    """The signal times a parameter in the view `shape`."""

    names = ("multiply_parameter",)
    kind = AFFINE

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] * roles["parameter"].reshape(options["shape"])


class DivideParameter(Operation):
    """The signal divided by a parameter in the view `shape`."""

    names = ("divide_parameter",)
    kind = AFFINE

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] / roles["parameter"].reshape(options["shape"])


class Concatenate(Operation):
    """Several signals one after the other along `dim`."""

    names = ("concatenate",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return torch.cat(list(inputs), options["dim"])
