"""What the nodes of a traced module mean, and the steps made of them so far.

A node means a signal (the step that computes it), a parameter, the parts that chunk, split or unbind made of a signal,
probabilities or an object to be returned, or a plain value (a size, a flag).  A node that is refused means nothing,
is listed with its path, and the run goes on so that all refusals are listed at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fsdtool.model.factory import canonical_names
from fsdtool.network.graph import Graph, Step
from fsdtool.network.logits import PLAIN
from fsdtool.network.operations.calls import EXAMPLES, Call, Computed, Parameter, Parts, Signal, target_name


class Untraceable(Exception):
    """The model holds something neither affine, linear, pointwise nor a maximum; `reasons` lists each."""

    def __init__(self, reasons: list[str]):
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


@dataclass(frozen=True)
class Ending:
    """Probabilities, or their logarithms, of the classes: of meaning only as what the network returns."""

    link: str
    source: Signal


@dataclass(frozen=True)
class Structure:
    """An object of several outputs, each by its name."""

    parts: dict[str, Any]


class NodeReader(fx.Interpreter):
    """Runs a traced module on an example and keeps the meaning of each node; shapes are then known.

    A subclass has one method per kind of node, `_call_function` and so on, that returns its meaning.
    """

    def __init__(self, module: fx.GraphModule, model: nn.Module, *, classification: bool = True, output: str = ""):
        super().__init__(module)
        self.unsupported: list[str] = []
        self._steps: list[Step] = []
        self._meaning: dict[fx.Node, Any] = {}  # node -> Signal, Parameter, Parts, or a plain value
        self._names = canonical_names(model)
        self._state = model.state_dict()
        self._result: Signal | None = None
        self._classification, self._chosen = classification, output
        self.link = PLAIN

    def to_graph(self) -> Graph:
        """The steps that the output depends on, in order."""
        assert self._result is not None  # nothing was refused
        needed, keep = [self._result.step], {0}
        while needed:
            i = needed.pop()
            keep.add(i)
            needed.extend(j for j in self._steps[i].inputs if j not in keep)
        place = {old: new for new, old in enumerate(sorted(keep))}
        kept = [self._steps[i] for i in place]
        return Graph(tuple(replace(step, inputs=tuple(place[j] for j in step.inputs)) for step in kept))

    def run_node(self, node: fx.Node) -> Any:
        try:
            value = super().run_node(node)
        except Exception as error:  # the user's code on the example
            raise Untraceable([*self.unsupported, f"{node.name}: {first_line(error)}"]) from error
        self._settle_endings(node)
        refused = len(self.unsupported)
        meaning = getattr(self, f"_{node.op}")(node, value)
        if isinstance(meaning, Signal) and value.shape != (EXAMPLES, *self._shape(meaning)):
            self._refuse(node, "an operation across the batch")
            meaning = None
        if len(self.unsupported) > refused and isinstance(value, Tensor):
            meaning = self._stand_in(tuple(value.shape[1:]))
        self._meaning[node] = meaning
        return value

    def _stand_in(self, shape: tuple[int, ...]) -> Signal:
        """A step in the place of one that was refused, so that what follows is still looked at."""
        self._steps.append(Step("", "identity", (0,), shape=shape))
        return Signal(len(self._steps) - 1)

    def _settle_endings(self, node: fx.Node) -> None:
        """Refuse probabilities that are computed with further."""
        for source in node.all_input_nodes:
            meaning = self._meaning.get(source)
            if isinstance(meaning, Ending) and not self._keeps_ending(node):
                self._refuse(source, None)
                self._meaning[source] = self._stand_in(self._shape(meaning.source))

    def _keeps_ending(self, node: fx.Node) -> bool:
        """Whether probabilities are still what the network ends in after this node."""
        return node.op == "output"

    def _add(
        self,
        node: fx.Node,
        operation: str,
        *sources: Signal,
        options: dict[str, Any] | None = None,
        parameters: dict[str, str] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Signal:
        """A new step; `shape` only for the input, otherwise a run on zeros finds it."""
        taken = {step.name for step in self._steps}
        name = str(node.target) if node.op == "call_module" else node.name
        if name in taken:
            name = f"{name}.{len(self._steps)}"
        step = Step(name, operation, tuple(s.step for s in sources), options or {}, parameters or {})
        if shape is None:
            zeros = [torch.zeros(1, *self._shape(source)) for source in sources]
            try:
                shape = tuple(step.apply(zeros, self._state).shape[1:])
            except Exception as error:  # torch's complaint about arguments that no Graph can hold
                raise Untraceable([*self.unsupported, f"{name}: {first_line(error)}"]) from error
        self._steps.append(replace(step, shape=shape))
        return Signal(len(self._steps) - 1)

    def _signal(self, argument: Any) -> Signal | None:
        meaning = self._meaning.get(argument) if isinstance(argument, fx.Node) else None
        return meaning if isinstance(meaning, Signal) else None

    def _shape(self, source: Signal) -> tuple[int, ...]:
        return self._steps[source.step].shape

    def _target(self, node: fx.Node) -> Any:
        return type(self.module.get_submodule(str(node.target))) if node.op == "call_module" else node.target

    def _plain(self, argument: Any) -> Any:
        """An argument with every node in it replaced by what it means, such as x.shape[1] by its number."""

        def meaning(node: fx.Node) -> Any:
            found = self._meaning.get(node)
            return Computed() if found is None and isinstance(self.env.get(node), Tensor) else found

        return fx.node.map_arg(argument, meaning)

    def _roles(self, node: fx.Node, module: nn.Module, roles: tuple[str, ...]) -> dict[str, str]:
        present = [role for role in roles if getattr(module, role) is not None]
        computed = [role for role in present if f"{node.target}.{role}" not in self._names]
        if computed:
            self._refuse(node, f"{computed[0]} that is computed, not stored")
        return {role: self._names[f"{node.target}.{role}"] for role in present if role not in computed}

    def _other(self, node: fx.Node, value: Any) -> Any:
        """A plain value (a size, a flag) means itself, a view of a parameter the parameter in that shape.

        Tensors made from a signal in an unknown way are refused.
        """
        several = isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value)
        tensors = isinstance(value, Tensor) or several
        if tensors and any(isinstance(self._meaning.get(n), (Signal, Parts)) for n in node.all_input_nodes):
            return self._refuse(node, None)
        if isinstance(value, Tensor):
            return self._view(node, value)
        return None if several else value

    def _view(self, node: fx.Node, value: Tensor) -> Parameter | None:
        source = self._meaning.get(node.all_input_nodes[0]) if len(node.all_input_nodes) == 1 else None
        if not isinstance(source, Parameter):
            return None
        stored = self._state[source.name]
        same = value.data_ptr() == stored.data_ptr() and value.numel() == stored.numel()
        whole = same and value.is_contiguous() and stored.is_contiguous()
        return Parameter(source.name, tuple(value.shape)) if whole else None

    def _refuse(self, node: fx.Node, what: str | None) -> None:
        where = str(node.target) if node.op == "call_module" else node.name
        self.unsupported.append(f"{where}: {what or target_name(self._target(node))}")


class NodeCall(Call):
    """The call that a node makes, for the operation that reads it."""

    def __init__(self, reader: NodeReader, node: fx.Node, value: Any):
        self._reader, self._node = reader, node
        self.target = reader._target(node)
        self.module = reader.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        self.arguments, self.keywords = reader._plain(node.args), dict(reader._plain(node.kwargs))
        self.value = value
        first = node.args[0] if node.args else node.kwargs.get("input")
        self.before = reader.env.get(first) if isinstance(first, fx.Node) else None

    def add(
        self,
        operation: str,
        *sources: Signal,
        options: dict[str, Any] | None = None,
        parameters: dict[str, str] | None = None,
    ) -> Signal:
        return self._reader._add(self._node, operation, *sources, options=options, parameters=parameters)

    def refuse(self, what: str | None = None) -> None:
        self._reader._refuse(self._node, what)

    def other(self) -> Any:
        return self._reader._other(self._node, self.value)

    def shape(self, source: Signal) -> tuple[int, ...]:
        return self._reader._shape(source)

    def stored_shape(self, parameter: Parameter) -> tuple[int, ...]:
        return tuple(self._reader._state[parameter.name].shape)

    def roles(self, *roles: str) -> dict[str, str]:
        return self._reader._roles(self._node, self.module, roles)
