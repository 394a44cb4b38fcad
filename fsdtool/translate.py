"""Translation of torch.fx nodes into the steps of a Graph, one method per family of operations."""

from __future__ import annotations

import math
import operator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fsdtool import activations
from fsdtool.logits import LOG_SOFTMAX, PLAIN, SIGMOID, choose
from fsdtool.logits import SOFTMAX as PROBABILITIES
from fsdtool.nodes import EXAMPLES, Ending, NodeReader, Parameter, Parts, Signal, Structure, target_name
from fsdtool.spellings import (
    ARITHMETIC,
    CONVOLUTION_OPTIONS,
    CONVOLUTIONS,
    NOTHING,
    POOL_OPTIONS,
    POOLS,
    RESHAPING,
    SOFTMAX,
)

LOGARITHMS = (torch.log, "log")


class Translator(NodeReader):
    """After `run(example)`, `unsupported` lists what was refused; if nothing, `to_graph()` is the network."""

    # One method per kind of fx node; each returns the node's meaning.

    def _placeholder(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self._steps:
            return self._refuse(node, "a second input")
        return self._add(node, "input", shape=tuple(value.shape[1:]))

    def _get_attr(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor) and node.target in self._names:
            return Parameter(self._names[node.target], tuple(value.shape))
        return value

    def _output(self, node: fx.Node, value: Any) -> None:
        returned = node.args[0]
        meaning = self._meaning.get(returned) if isinstance(returned, fx.Node) else None
        returned = meaning.parts if isinstance(meaning, Structure) else returned

        def is_tensor(part: Any) -> bool:
            return isinstance(part, fx.Node) and not isinstance(self._meaning.get(part), Structure)

        _, result = choose(returned, self._chosen, is_tensor)
        self.link, self._result = self._before_link(result)
        if self._result is None:
            return None if self.unsupported else self._refuse(node, "outputs that do not depend on the input")
        shape = self._shape(self._result)
        if not shape:
            self._result = self._add(node, "reshape", self._result, options={"shape": (1,)})
        elif len(shape) > 1:
            return self._refuse(node, f"outputs that are not one (batch, outputs) tensor but shape (batch, {shape})")
        return None

    def _before_link(self, result: fx.Node) -> tuple[str, Signal | None]:
        """The link that a classifier ends in, and what goes into it."""
        meaning = self._meaning.get(result)
        if isinstance(meaning, Ending):
            return meaning.link, meaning.source
        if isinstance(meaning, Signal) and self._classification:
            step = self._steps[meaning.step]
            if step.kind == "activation" and step.options["function"] == "sigmoid":
                return SIGMOID, Signal(step.inputs[0])
        return PLAIN, meaning if isinstance(meaning, Signal) else None

    def _ending(self, node: fx.Node, source: Signal | None, name: str, dim: Any) -> Any:
        """softmax or log_softmax over the classes of a signal, where that may be what a classifier ends in."""
        rank = 0 if source is None else len(self._shape(source)) + 1
        if source is None or not self._classification or rank != 2 or dim not in (1, -1):
            return self._refuse(node, None)
        return Ending(LOG_SOFTMAX if "log" in name.lower() else PROBABILITIES, source)

    def _call_module(self, node: fx.Node, value: Any) -> Any:
        module = self.module.get_submodule(node.target)
        source, kind = self._signal(node.args[0] if node.args else None), type(module)
        if source is None:
            return self._after_ending(node, value)
        if kind in NOTHING:
            return source
        if kind in activations.MODULES:
            options = {"function": activations.MODULES[kind], "settings": activations.module_options(module)}
            return self._add(node, "activation", source, options=options)
        if kind is nn.Linear:
            return self._add(node, "linear", source, parameters=self._roles(node, module))
        if kind in CONVOLUTIONS:
            return self._convolution(node, module, source, value)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is None:
                return self._refuse(node, "batch norm without running statistics")
            roles = self._roles(node, module, ("running_mean", "running_var", "weight", "bias"))
            return self._add(node, "batch_norm", source, options={"eps": module.eps}, parameters=roles)
        if kind in POOLS:
            options = {key: getattr(module, key) for key in POOL_OPTIONS[POOLS[kind]]}
            return self._pool(node, POOLS[kind], source, options, value)
        if kind in (nn.Flatten, nn.Unflatten):
            return self._reshape(node, source, value)
        if kind in SOFTMAX:
            return self._ending(node, source, kind.__name__, 1 if module.dim is None else module.dim)
        return self._other(node, value)

    def _call_function(self, node: fx.Node, value: Any) -> Any:
        target, name = node.target, target_name(node.target)
        name = activations.ALIASES.get(name, name)
        if target in ARITHMETIC:
            return self._arithmetic(node, ARITHMETIC[target], value)
        if target is operator.getitem:
            return self._getitem(node, value)
        if isinstance(target, type) and (is_dataclass(target) or hasattr(target, "_fields")):
            names = getattr(target, "_fields", None) or [field.name for field in fields(target)]
            return Structure(dict(zip(names, node.args, strict=False)) | dict(node.kwargs))
        if target in (torch.cat, torch.concat, torch.concatenate):
            return self._concatenate(node, value)
        source = self._signal(node.args[0] if node.args else node.kwargs.get("input"))
        if source is None:
            return self._after_ending(node, value)
        if target in SOFTMAX:
            dim = self._options(node, ("dim",)).get("dim")
            return self._ending(node, source, name, 1 if dim is None else dim)
        if name == "zeros_like":
            return self._add(node, "scale", source, options={"factor": 0.0})
        if target in RESHAPING:
            return self._reshape(node, source, value)
        if target in NOTHING or name == "stochastic_depth":
            before = self.env[node.args[0] if node.args else node.kwargs["input"]]
            if value.dtype != before.dtype:
                return self._refuse(node, "a change of dtype")
            return source if torch.equal(value, before) else self._refuse(node, "noise that is not only for training")
        if target in (operator.neg, torch.neg, "neg"):
            return self._add(node, "scale", source, options={"factor": -1.0})
        if name in activations.names():
            given = self._options(node, tuple(activations.option_defaults(name)))
            return self._add(node, "activation", source, options={"function": name, "settings": given})
        if target in (torch.mean, torch.sum, "mean", "sum"):
            return self._reduce(node, name, source)
        if target in (torch.permute, torch.transpose, "permute", "transpose"):
            return self._permute(node, source, value)
        if target in (torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind"):
            return self._split(node, source, value)
        if target is F.pad:
            given = self._options(node, ("pad", "mode", "value"))
            if given.pop("value", None):
                return self._refuse(node, "padding with a value other than zero")
            return self._add(node, "pad", source, options={"mode": "constant", **given, "pad": tuple(given["pad"])})
        if name in POOL_OPTIONS:
            return self._pool(node, name, source, self._options(node, POOL_OPTIONS[name]), value)
        if name in ("linear", "conv1d", "conv2d", "conv3d"):
            return self._functional_affine(node, name, source)
        return self._other(node, value)

    _call_method = _call_function

    def _keeps_ending(self, node: fx.Node) -> bool:
        target, made = self._target(node), node.op == "call_function" and isinstance(node.target, type)
        return super()._keeps_ending(node) or target in NOTHING or target in LOGARITHMS or made

    def _after_ending(self, node: fx.Node, value: Any) -> Any:
        """What is done to probabilities: their logarithm, or nothing."""
        given = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        ending = self._meaning.get(given)
        if not isinstance(ending, Ending):
            return self._other(node, value)
        if self._target(node) not in LOGARITHMS:
            return ending if torch.equal(value, self.env[given]) else self._refuse(node, None)
        return Ending(LOG_SOFTMAX, ending.source) if ending.link == PROBABILITIES else self._refuse(node, None)

    # The families of operations.

    def _convolution(self, node: fx.Node, module: nn.Module, source: Signal, value: Tensor) -> Any:
        dimensions = CONVOLUTIONS[type(module)]
        if value.dim() != dimensions + 2:
            return self._refuse(node, "a convolution over an input without batch dimension")
        options = {key: getattr(module, key) for key in CONVOLUTION_OPTIONS}
        if module.padding_mode != "zeros":
            pad = tuple(int(n) for n in module._reversed_padding_repeated_twice)
            source = self._add(node, "pad", source, options={"pad": pad, "mode": module.padding_mode})
            options["padding"] = 0
        return self._add(node, f"conv{dimensions}d", source, options=options, parameters=self._roles(node, module))

    def _functional_affine(self, node: fx.Node, name: str, source: Signal) -> Any:
        arguments = self._given(node, ("weight", "bias", *CONVOLUTION_OPTIONS))
        weights = {role: arguments.pop(role, None) for role in ("weight", "bias")}
        weights = {role: self._meaning.get(value) for role, value in weights.items() if value is not None}
        if not all(isinstance(m, Parameter) and m.shape == self._state[m.name].shape for m in weights.values()):
            return self._refuse(node, "weights that are computed, not stored")
        roles = {role: parameter.name for role, parameter in weights.items()}
        return self._add(node, name, source, options=dict(self._plain(arguments)), parameters=roles)

    def _pool(self, node: fx.Node, operation: str, source: Signal, options: dict[str, Any], value: Any) -> Any:
        if not isinstance(value, Tensor):
            return self._refuse(node, "max pooling that returns its indices")
        if value.dim() != int(operation[-2]) + 2:
            return self._refuse(node, "a pooling over an input without batch dimension")
        options = {key: option for key, option in options.items() if option is not None}
        if "output_size" in options:  # None in an output size keeps that dimension
            options["output_size"] = tuple(value.shape[2:])
        return self._add(node, operation, source, options=options)

    def _arithmetic(self, node: fx.Node, operation: str, value: Any) -> Any:
        if len(node.args) != 2 or node.kwargs:
            return self._other(node, value)
        left, right = (self._signal(argument) for argument in node.args)
        if left is None and right is None:
            return self._other(node, value)
        if left is not None and right is not None:
            if operation in ("multiply", "divide"):
                return self._refuse(node, "a product or quotient of two signals")
            if len(self._shape(left)) != len(self._shape(right)):
                return self._refuse(node, "a sum of signals of different dimensions")
            return self._add(node, operation, left, right)
        if operation == "divide" and left is None:
            return self._refuse(node, "division by a signal")
        other = node.args[1] if left is not None else node.args[0]
        other = self._meaning.get(other) if isinstance(other, fx.Node) else other
        source, sign = (left, 1.0) if left is not None else (right, 1.0)
        if operation == "subtract" and left is not None:
            sign = -1.0
        elif operation == "subtract":  # other - signal = (-signal) + other
            source = self._add(node, "scale", source, options={"factor": -1.0})
        additive = operation in ("add", "subtract")
        if isinstance(other, Parameter):
            if len(other.shape) > value.dim() or (len(other.shape) == value.dim() and other.shape[0] != 1):
                return self._refuse(node, "a parameter with one entry per example")
            kind, options = ("add", {"sign": sign}) if additive else (operation, {})
            roles = {"parameter": other.name}
            options["shape"] = other.shape
            return self._add(node, f"{kind}_parameter", source, options=options, parameters=roles)
        if isinstance(other, (int, float)) and math.isfinite(other) and (additive or operation == "multiply" or other):
            if additive:
                return self._add(node, "shift", source, options={"constant": sign * other})
            return self._add(node, "scale", source, options={"factor": other if operation == "multiply" else 1 / other})
        return self._refuse(node, "arithmetic with a tensor that is not in the state_dict")

    def _concatenate(self, node: fx.Node, value: Tensor) -> Any:
        tensors = node.args[0] if node.args else node.kwargs["tensors"]
        parts = self._meaning.get(tensors) if isinstance(tensors, fx.Node) else None
        if isinstance(parts, Parts):
            sources = [self._add(node, "slice", parts.source, options=options) for options in parts.slices]
        elif isinstance(tensors, fx.Node):
            return self._other(node, value)
        else:
            sources = [self._signal(tensor) for tensor in tensors]
        if all(source is None for source in sources):
            return self._other(node, value)
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if any(source is None for source in sources) or dim % value.dim() == 0:
            return self._refuse(node, "concatenation with something that is no signal, or along the batch")
        return self._add(node, "concatenate", *sources, options={"dim": dim % value.dim()})

    def _reduce(self, node: fx.Node, name: str, source: Signal) -> Any:
        given = self._options(node, ("dim", "keepdim"))
        dims = given.get("dim", given.get("axis"))
        dims = dims if isinstance(dims, (tuple, list)) else (dims,)
        rank = len(self._shape(source)) + 1
        if any(not isinstance(d, int) or d % rank == 0 for d in dims):
            return self._refuse(node, "a mean or sum over the batch")
        options = {"dim": tuple(d % rank for d in dims), "keepdim": bool(given.get("keepdim", False))}
        return self._add(node, name, source, options=options)

    def _reshape(self, node: fx.Node, source: Signal, value: Tensor) -> Any:
        if value.shape[0] != EXAMPLES or value.numel() != EXAMPLES * math.prod(self._shape(source)):
            return self._refuse(node, "a reshape that mixes examples")
        return self._add(node, "reshape", source, options={"shape": tuple(value.shape[1:])})

    def _permute(self, node: fx.Node, source: Signal, value: Tensor) -> Any:
        rank = value.dim()
        given = self._plain(node.args[1:] if len(node.args) > 2 else tuple(node.args[1:]) + tuple(node.kwargs.values()))
        given = given[0] if given and isinstance(given[0], (tuple, list)) else given
        dims = [d % rank for d in given if isinstance(d, int)]
        if target_name(node.target) == "transpose" and len(dims) == 2:
            order = list(range(rank))
            order[dims[0]], order[dims[1]] = dims[1], dims[0]
            dims = order
        if len(dims) != rank or dims[0] != 0:
            return self._refuse(node, "a permutation that moves the batch")
        return self._add(node, "permute", source, options={"dims": tuple(dims)})

    def _split(self, node: fx.Node, source: Signal, value: tuple[Tensor, ...]) -> Any:
        squeeze = target_name(node.target) == "unbind"
        names = ("dim",) if squeeze else ("count", "dim")
        dim = self._options(node, names).get("dim", 0) % (len(self._shape(source)) + 1)
        if dim == 0:
            return self._refuse(node, "a split of the batch")
        lengths = [1 if squeeze else part.shape[dim] for part in value]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        slices = [
            {"dim": dim, "start": start, "length": length, "squeeze": squeeze}
            for start, length in zip(starts, lengths, strict=True)
        ]
        return Parts(source, tuple(slices))

    def _getitem(self, node: fx.Node, value: Any) -> Any:
        parts, index = self._meaning.get(node.args[0]), self._plain(node.args[1])
        if isinstance(parts, Parts) and isinstance(index, int):
            return self._add(node, "slice", parts.source, options=parts.slices[index])
        source = self._signal(node.args[0])
        if source is None:
            return self._other(node, value)
        entries = list(index) if isinstance(index, tuple) else [index]
        lengths = self._shape(source)
        if any(entry is Ellipsis for entry in entries):
            at = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
            entries[at : at + 1] = [slice(None)] * (len(lengths) + 2 - len(entries))
        if entries[:1] != [slice(None)] or not all(isinstance(entry, (int, slice)) for entry in entries):
            return self._refuse(node, "indexing along the batch, by a list or with None")
        dim = 1
        for entry, length in zip(entries[1:], lengths, strict=False):
            squeeze = isinstance(entry, int)
            taken = range(length)[entry % length : entry % length + 1] if squeeze else range(length)[entry]
            if squeeze or taken != range(length):
                options = {"dim": dim, "start": taken.start, "length": len(taken), "squeeze": squeeze}
                source = self._add(node, "slice", source, options=options | {"stride": taken.step})
            dim += not squeeze
        return source
