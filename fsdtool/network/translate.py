"""Translation of torch.fx nodes into the steps of a Graph: each call is read by its operation
(fsdtool.network.operations).

Here is the rest: inputs, what the network returns, and softmax where it is what a classifier ends in.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fsdtool.network.logits import LOG_SOFTMAX, PLAIN, SIGMOID, choose
from fsdtool.network.logits import SOFTMAX as PROBABILITIES
from fsdtool.network.nodes import Ending, NodeCall, NodeReader, Structure
from fsdtool.network.operations.base import reader
from fsdtool.network.operations.calls import Parameter, Signal
from fsdtool.network.operations.reshaping import Identity

SOFTMAX = {
    nn.Softmax, nn.LogSoftmax, torch.softmax, torch.log_softmax, F.softmax, F.log_softmax,
    "softmax", "log_softmax",
}  # fmt: skip
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
            if step.kind == "activation" and step.options.get("function") == "sigmoid":
                return SIGMOID, Signal(step.inputs[0])
        return PLAIN, meaning if isinstance(meaning, Signal) else None

    def _ending(self, node: fx.Node, source: Signal | None, name: str, dim: Any) -> Any:
        """softmax or log_softmax over the classes of a signal, where that may be what a classifier ends in."""
        rank = 0 if source is None else len(self._shape(source)) + 1
        if source is None or not self._classification or rank != 2 or dim not in (1, -1):
            return self._refuse(node, None)
        return Ending(LOG_SOFTMAX if "log" in name.lower() else PROBABILITIES, source)

    def _call_module(self, node: fx.Node, value: Any) -> Any:
        return self._called(node, value, self._signal(node.args[0] if node.args else None))

    def _call_function(self, node: fx.Node, value: Any) -> Any:
        target = node.target
        if isinstance(target, type) and (is_dataclass(target) or hasattr(target, "_fields")):
            names = getattr(target, "_fields", None) or [field.name for field in fields(target)]
            return Structure(dict(zip(names, node.args, strict=False)) | dict(node.kwargs))
        return self._called(node, value, self._signal(node.args[0] if node.args else node.kwargs.get("input")))

    def _called(self, node: fx.Node, value: Any, source: Signal | None) -> Any:
        """The meaning of a module, function or method, as the operation that it is reads it."""
        call = NodeCall(self, node, value)
        operation = reader(call.target)
        if source is None and (operation is None or operation.first_is_signal):
            return self._after_ending(node, value)
        if operation is not None:
            return operation.read(call)
        if call.target in SOFTMAX:
            dim = call.options(("dim",)).get("dim")
            return self._ending(node, source, call.name, 1 if dim is None else dim)
        return self._other(node, value)

    _call_method = _call_function

    def _keeps_ending(self, node: fx.Node) -> bool:
        target, made = self._target(node), node.op == "call_function" and isinstance(node.target, type)
        nothing = reader(target) is Identity
        return super()._keeps_ending(node) or nothing or target in LOGARITHMS or made

    def _after_ending(self, node: fx.Node, value: Any) -> Any:
        """What is done to probabilities: their logarithm, or nothing."""
        given = node.args[0] if node.args else None
        ending = self._meaning.get(given) if isinstance(given, fx.Node) else None
        if not isinstance(given, fx.Node) or not isinstance(ending, Ending):
            return self._other(node, value)
        if self._target(node) not in LOGARITHMS:
            return ending if torch.equal(value, self.env[given]) else self._refuse(node, None)
        return Ending(LOG_SOFTMAX, ending.source) if ending.link == PROBABILITIES else self._refuse(node, None)
