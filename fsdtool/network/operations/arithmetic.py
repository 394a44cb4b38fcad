"""Sums of signals and within one, and a signal with a number or a parameter that is added, multiplied or divided by."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsdtool.network.operations.base import AFFINE, Operation, Options, Parameters, Step, VectorMap
from fsdtool.network.operations.calls import Call, Computed, Parameter, Signal
from fsdtool.network.operations.weighted import LayerIO, Parametric, sum_to

_NO_NUMBER = "arithmetic with a tensor that is not in the state_dict"


class OfTwoSignals(Operation):
    """A sum or difference of two signals."""

    first_is_signal = False

    @classmethod
    def read(cls, call: Call) -> Any:
        return _read_sum(call, cls.names[0])


class Add(OfTwoSignals):
    """a + b of two signals."""

    names = ("add",)
    spellings = (operator.add, operator.iadd, torch.add, "add", "add_")

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] + inputs[-1]


class Subtract(OfTwoSignals):
    """a - b of two signals."""

    names = ("subtract",)
    spellings = (operator.sub, operator.isub, torch.sub, "sub", "sub_")

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] - inputs[-1]


class Scale(Operation):
    """The signal times the number `factor`: its negative, zeros like it, and what a product with a number becomes."""

    names = ("scale",)
    spellings = (operator.neg, torch.neg, "neg")
    function_names = ("zeros_like",)

    @classmethod
    def read(cls, call: Call) -> Any:
        return call.add("scale", call.source, options={"factor": 0.0 if call.name == "zeros_like" else -1.0})

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] * options["factor"]

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        scale = like.new_full((step.units,), float(step.options["factor"]))
        return VectorMap(scale, torch.zeros_like(scale))


class Shift(Operation):
    """The signal plus the number `constant`: what a sum with a number becomes."""

    names = ("shift",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] + options["constant"]

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        shift = like.new_full((step.units,), float(step.options["constant"]))
        return VectorMap(torch.ones_like(shift), shift)


class WithParameter(Parametric):
    """A signal and a parameter in the view `shape`, entry by entry."""

    kind = AFFINE
    first_is_signal = False

    @abstractmethod
    def slopes(self, use: LayerIO, parameter: Tensor) -> Tensor:
        """The gradient at the output times the derivative of each entry in its own of the parameter, in its view."""

    def vector_roles(self, step: Step) -> tuple[str, ...]:
        return ("parameter",)

    def vectors(self, use: LayerIO, roles: Sequence[str]) -> dict[str, Tensor]:
        shape = use.step.options["shape"]
        return {role: sum_to(self.slopes(use, use.roles[role].reshape(shape)), shape) for role in roles}

    @classmethod
    def read(cls, call: Call) -> Any:
        return _read_product(call, cls.names[0])


class AddParameter(WithParameter):
    """The signal plus `sign` times the parameter: what a sum with a parameter becomes."""

    names = ("add_parameter",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] + options["sign"] * roles["parameter"].reshape(options["shape"])

    def slopes(self, use: LayerIO, parameter: Tensor) -> Tensor:
        return use.step.options["sign"] * use.gradient


class MultiplyParameter(WithParameter):
    """The signal times the parameter."""

    names = ("multiply_parameter",)
    spellings = (operator.mul, operator.imul, torch.mul, "mul", "mul_")

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] * roles["parameter"].reshape(options["shape"])

    def slopes(self, use: LayerIO, parameter: Tensor) -> Tensor:
        return use.gradient * use.input


class DivideParameter(WithParameter):
    """The signal divided by the parameter."""

    names = ("divide_parameter",)
    spellings = (operator.truediv, operator.itruediv, torch.div, "div", "div_")

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0] / roles["parameter"].reshape(options["shape"])

    def slopes(self, use: LayerIO, parameter: Tensor) -> Tensor:
        return -use.gradient * use.input / parameter.square()


class Concatenate(Operation):
    """Several signals one after the other along `dim`."""

    names = ("concatenate",)
    spellings = (torch.cat, torch.concat, torch.concatenate)
    first_is_signal = False

    @classmethod
    def read(cls, call: Call) -> Any:
        tensors = call.arguments[0] if call.arguments else call.keywords["tensors"]
        if not isinstance(tensors, (tuple, list)):
            return call.other()
        sources = [tensor for tensor in tensors if not _is_empty(tensor)]  # as a cache is that holds nothing yet
        signals = [source for source in sources if isinstance(source, Signal)]
        if not signals:
            return call.other()
        given, rank = call.given(("dim",)), call.value.dim()
        dim = given.get("dim", given.get("axis", 0))
        if len(signals) < len(sources) or dim % rank == 0:
            return call.refuse("concatenation with something that is no signal, or along the batch")
        if len(signals) == 1:
            return signals[0]
        return call.add("concatenate", *signals, options={"dim": dim % rank})

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return torch.cat(list(inputs), options["dim"])


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


def _is_empty(tensor: Any) -> bool:
    return isinstance(tensor, Computed) and tensor.tensor.numel() == 0


def _signals(call: Call) -> tuple[Signal | None, Signal | None]:
    """The two operands, each None where it is no signal."""
    if len(call.arguments) != 2 or call.keywords:
        return None, None
    left, right = (argument if isinstance(argument, Signal) else None for argument in call.arguments)
    return left, right


def _read_sum(call: Call, operation: str) -> Any:
    """'add' or 'subtract' of two signals, or of a signal and a number or parameter."""
    left, right = _signals(call)
    if left is not None and right is not None:
        if len(call.shape(left)) != len(call.shape(right)):
            return call.refuse("a sum of signals of different dimensions")
        return call.add(operation, left, right)
    source, sign = left or right, 1.0
    if source is None:
        return call.other()
    other = call.arguments[1 if left is not None else 0]
    if operation == "subtract" and left is not None:
        sign = -1.0
    elif operation == "subtract":  # other - signal = (-signal) + other
        source = call.add("scale", source, options={"factor": -1.0})
    if isinstance(other, Parameter):
        return _with_parameter(call, "add_parameter", source, other, {"sign": sign})
    if isinstance(other, (int, float)) and math.isfinite(other):
        return call.add("shift", source, options={"constant": sign * other})
    return call.refuse(_NO_NUMBER)


def _read_product(call: Call, operation: str) -> Any:
    """'multiply_parameter' or 'divide_parameter', or the scale by a number instead."""
    left, right = _signals(call)
    if left is not None and right is not None:
        return call.refuse("a product or quotient of two signals")
    source, divide = left or right, operation == "divide_parameter"
    if source is None:
        return call.other()
    if divide and left is None:
        return call.refuse("division by a signal")
    other = call.arguments[1 if left is not None else 0]
    if isinstance(other, Parameter):
        return _with_parameter(call, operation, source, other, {})
    if isinstance(other, (int, float)) and math.isfinite(other) and (other or not divide):
        return call.add("scale", source, options={"factor": 1 / other if divide else other})
    return call.refuse(_NO_NUMBER)


def _with_parameter(
    call: Call, operation: str, source: Signal, parameter: Parameter, options: dict[str, Any]
) -> Signal | None:
    rank = call.value.dim()
    if len(parameter.shape) > rank or (len(parameter.shape) == rank and parameter.shape[0] != 1):
        return call.refuse("a parameter with one entry per example")
    options = {**options, "shape": parameter.shape}
    return call.add(operation, source, options=options, parameters={"parameter": parameter.name})
