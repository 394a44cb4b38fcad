"""A call of torch while a model runs on an example, as an operation reads it, and what its parts mean.

Whoever traces the model makes the calls; an operation that reads one adds steps to the network, or refuses it.  In the
arguments stands for each tensor what it means: a Signal, a Parameter, or Computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

EXAMPLES = 3  # batch size while tracing: unlikely to be mistaken for another dimension


@dataclass(frozen=True)
class Signal:
    """A value that depends on the input: the step that computes it."""

    step: int


@dataclass(frozen=True)
class Parameter:
    """A weight or buffer met as a value of its own: its name in the state_dict, the shape it is viewed in."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Computed:
    """A tensor that is neither a signal nor stored: a constant, or computed from parameters."""

    tensor: Any


class Call(ABC):
    """One call: of `module`, or (None) of `target`, a function or the name of a tensor's method.

    target: for a module its class.  module: an nn.Module or None.
    arguments, keywords: as given, with meanings in place of tensors.
    value: what came out for the example, of EXAMPLES in the batch.
    before: the value of the first argument of a function, None where it was given as such.
    """

    target: Any
    module: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    value: Any
    before: Any

    @abstractmethod
    def add(
        self,
        operation: str,
        *sources: Signal,
        options: dict[str, Any] | None = None,
        parameters: dict[str, str] | None = None,
    ) -> Signal:
        """A new step that reads `sources`; `parameters` are names in the state_dict, by role."""

    def run(self, function: str, *sources: Signal, **keywords: Any) -> Signal:
        """A new step that runs a function of torch (fsdtool.network.functions) on `sources`."""
        arguments = tuple({"input": i} for i in range(len(sources)))
        options: dict[str, Any] = {"function": function, "arguments": arguments, "keywords": keywords}
        options |= {"examples": (0, 0, 1), "result": (0, 1)}
        return self.add("function", *sources, options=options)

    @abstractmethod
    def fixed(self, argument: Computed) -> Signal:
        """The step of a tensor in which no example is, for `run` and no other."""

    @abstractmethod
    def refuse(self, what: str | None = None) -> None:
        """Say that this call has no place in a network, and why (None: it is unknown)."""

    @abstractmethod
    def other(self) -> Any:
        """What the call means when it is no operation: a number, a view of a parameter; refused if it took a signal."""

    @abstractmethod
    def shape(self, source: Signal) -> tuple[int, ...]:
        """The shape of a signal, without the batch."""

    @abstractmethod
    def stored_shape(self, parameter: Parameter) -> tuple[int, ...]:
        """The shape of a parameter in the state_dict."""

    @abstractmethod
    def roles(self, *roles: str) -> dict[str, str]:
        """The names in the state_dict of these parameters of the module, those that are None left out."""

    @property
    def name(self) -> str:
        """The name of the function, the method or the module's class."""
        return target_name(self.target)

    @property
    def first(self) -> Signal | None:
        """The first argument, if it is a signal."""
        first = self.arguments[0] if self.arguments else self.keywords.get("input")
        return first if isinstance(first, Signal) else None

    @property
    def source(self) -> Signal:
        """The first argument.  Raises TypeError where it is no signal."""
        if self.first is None:
            raise TypeError(f"the first argument of {self.name} is no signal")
        return self.first

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The arguments after the first, by name; only those in `names` (and numpy's axis)."""
        given = dict(zip(names, self.arguments[1:], strict=False)) | self.keywords
        return {key: given[key] for key in (*names, "axis") if key in given}

    def options(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The options of these names: attributes of the module, or what the function was given."""
        if self.module is None:
            return self.given(names)
        return {key: getattr(self.module, key) for key in names}


def target_name(target: Any) -> str:
    """The name of a function or class, and of a method the name that it is."""
    return target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
