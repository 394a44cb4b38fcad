"""Functions of torch that are run as they are (fsdtool.network.functions), and the constants that they take.

Neither affine nor gated: under changed weights the function is computed anew, and its derivative is its own.  The
arguments stand in the options as JSON values; what a plain number or text does not say is an object of one key:

    {"input": i}                       the i-th input of the step
    {"parameter": role}                a parameter, or with "shape" a view of it
    {"batch": k}                       k times the number of examples
    {"tuple": [...]}, {"slice": [start, stop, step]}, {"ellipsis": true}, {"dtype": "float32"}, {"device": true},
    {"memory_format": "contiguous_format"}
"""

from __future__ import annotations

import base64
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap

from fsdtool.network import functions
from fsdtool.network.operations.base import FUNCTION, Operation, Options, Parameters, Step
from fsdtool.network.operations.layout import example_shape
from fsdtool.network.operations.weighted import LayerIO, Parametric

PARAMETER, BUFFER = "parameter", "buffer"
LARGEST_CONSTANT = 2**24  # numbers
MOST_ROLES = 64  # of one function: an LSTM of eight layers in both directions has as many weights


class Function(Parametric):
    """`function` by its name, on `arguments` and `keywords`; of several results the one at `item`.

    examples: which input has the examples, at which dimension, and how many entries of each; result: the last two of
    what comes out, None where no example is in it.
    """

    names = ("function",)
    kind = FUNCTION
    buffers = tuple(f"{BUFFER}{i}" for i in range(MOST_ROLES))

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        index, dim, per_example = options["examples"]
        made = functools.partial(_value, inputs, roles, inputs[index].shape[dim] // per_example)
        value = functions.function(options["function"])(
            *map(made, options["arguments"]), **{key: made(part) for key, part in options["keywords"].items()}
        )
        return value[options["item"]] if "item" in options else value

    def vector_roles(self, step: Step) -> tuple[str, ...]:
        """Where examples are in front, and in no input but one."""
        given, result = tuple(step.options["examples"]), step.options["result"]
        in_front = given == (0, 0, 1) and result is not None and tuple(result) == (0, 1) and len(step.inputs) == 1
        return tuple(role for role in step.parameters if role not in self.buffers) if in_front else ()

    def vectors(self, use: LayerIO, roles: Sequence[str]) -> dict[str, Tensor]:
        """By the function's own derivative, of all examples at once or, where torch cannot, of each."""

        def of_one(x: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            def output(*values: Tensor) -> Tensor:
                parameters = {**use.roles, **dict(zip(roles, values, strict=True))}
                return self.run([x[None]], parameters, use.step.options)

            return vjp(output, *(use.roles[role] for role in roles))[1](b[None])

        try:
            found = vmap(of_one)(use.input, use.gradient)
        except RuntimeError:  # a function without a rule for batches
            each = [of_one(x, b) for x, b in zip(use.input, use.gradient, strict=True)]
            found = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return {role: part.reshape(len(part), -1) for role, part in zip(roles, found, strict=True)}

    def shape(self, output: Tensor, options: Options) -> tuple[int, ...]:
        return tuple(output.shape) if options["result"] is None else example_shape(output.shape, *options["result"])

    def accepts(self, options: Options) -> bool:
        functions.function(options["function"])
        return isinstance(options["arguments"], (tuple, list)) and isinstance(options["keywords"], dict)


class Constant(Operation):
    """A tensor that depends neither on examples nor on parameters; its input only says on which device."""

    names = ("constant",)
    kind = FUNCTION

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return unpacked(options["tensor"], tuple(options["shape"]), options["dtype"]).to(inputs[0].device)

    def shape(self, output: Tensor, options: Options) -> tuple[int, ...]:
        return tuple(output.shape)

    def accepts(self, options: Options) -> bool:
        return unpacked(options["tensor"], tuple(options["shape"]), options["dtype"]).dim() >= 0


def packed(tensor: Tensor) -> Options:
    """The options of a Constant that is `tensor`."""
    array = tensor.detach().cpu().contiguous().numpy()
    data = base64.b85encode(zlib.compress(array.tobytes())).decode()
    return {"tensor": data, "shape": tuple(array.shape), "dtype": array.dtype.name}


@functools.lru_cache(maxsize=64)
def unpacked(data: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    """The inverse of `packed`; not to be written to.  Raises ValueError, TypeError or zlib.error for what is none."""
    kind = np.dtype(dtype)
    size = kind.itemsize * math.prod(shape)
    if kind.kind not in "biufc" or not 0 <= size <= kind.itemsize * LARGEST_CONSTANT:
        raise ValueError(f"a constant of {size} bytes of the type {dtype}")
    decompressor = zlib.decompressobj()
    found = decompressor.decompress(base64.b85decode(data), size + 1)
    if len(found) != size:
        raise ValueError(f"a constant of {size} bytes holds {len(found)}")
    return torch.from_numpy(np.frombuffer(found, kind).reshape(shape).copy())


_READ: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda made, part: tuple(map(made, part)),
    "slice": lambda made, part: slice(*map(made, part)),
    "ellipsis": lambda made, part: ...,
    "dtype": lambda made, part: _of_torch(part, torch.dtype),
    "memory_format": lambda made, part: _of_torch(part, torch.memory_format),
}


def _value(inputs: Sequence[Tensor], roles: Parameters, examples: int, part: Any) -> Any:
    """What an argument in the options stands for.  Raises KeyError for an object that stands for nothing."""
    if isinstance(part, (list, tuple)):
        return [_value(inputs, roles, examples, inner) for inner in part]
    if not isinstance(part, Mapping):
        return part
    if "parameter" in part:
        parameter = roles[part["parameter"]]
        return parameter.reshape(part["shape"]) if "shape" in part else parameter
    (kind, inner), *_ = part.items()
    if kind == "input":
        return inputs[inner]
    if kind == "batch":
        return inner * examples
    if kind == "device":
        return inputs[0].device
    return _READ[kind](functools.partial(_value, inputs, roles, examples), inner)


def _of_torch(name: str, kind: type) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, kind):
        raise KeyError(name)
    return found
