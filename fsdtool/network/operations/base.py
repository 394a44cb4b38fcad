"""A step of a network, and the operation that it is.

A step is plain data, so that a file can hold it; what it means is said by the operation of its name.  Its kind is
    input       the network's input
    affine      parameters act on the signal
    linear      no parameters: the signal is moved, added up or scaled, and perhaps shifted
    activation  pointwise, a gate per unit whose law a summary records (see fsdtool.network.activations)
    maximum     a gate that keeps the positions that the reference's maximum chose
    function    anything else, run as it is
Signals carry the batch in front: a step of shape (C, H, W) gives (batch, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsdtool.network import activations
from fsdtool.network.operations.calls import Call, target_name

INPUT, AFFINE, LINEAR, ACTIVATION, MAXIMUM = "input", "affine", "linear", "activation", "maximum"
FUNCTION = "function"

Options = dict[str, Any]
Parameters = Mapping[str, Tensor]

_KNOWN: dict[str, Operation] = {}
_READERS: list[type[Operation]] = []


@dataclass(frozen=True)
class VectorMap:
    """An affine map y = W x + b of vectors: W (out, in), (n,) where it is diagonal, or None, the identity; b (out,)."""

    weight: Tensor | None = None
    bias: Tensor | None = None


class Operation:
    """What the steps of one name have in common; a subclass with `names` is known by each of them.

    names: one for each variant (such as its number of dimensions), of which an instance holds its own as `name`.
    channels_last: whether channels are last (True) or first (False) in its output; None, where they were in its input.
    over_positions: whether its weight is applied at each position of a grid, which makes an example cost more.
    buffers: roles of parameters that are not trained.
    spellings: what torch calls it: module classes, functions, and tensor methods by name.
    function_names: functions and methods that are known by their name alone, wherever they are from.
    arguments: options by name, attributes of the module or arguments of the function after the first (and the weights).
    first_is_signal: whether only a call with a signal as its first argument is one of it.
    entrywise: whether it acts on each entry, or on the last dimension, so that all others may be moved.
    """

    names: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = LINEAR
    channels_last: ClassVar[bool | None] = None
    over_positions: ClassVar[bool] = False
    buffers: ClassVar[tuple[str, ...]] = ()
    spellings: ClassVar[tuple[Any, ...]] = ()
    function_names: ClassVar[tuple[str, ...]] = ()
    arguments: ClassVar[tuple[str, ...]] = ()
    first_is_signal: ClassVar[bool] = True
    entrywise: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        _READERS.append(cls)
        for name in cls.__dict__.get("names", ()):
            if name in _KNOWN:
                raise TypeError(f"two operations are named '{name}': {type(_KNOWN[name]).__name__} and {cls.__name__}")
            _KNOWN[name] = cls(name)

    def __init__(self, name: str):
        self.name = name

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        """The output (batch, ...) on the signals `inputs` with the parameters of each role."""
        raise NotImplementedError

    def accepts(self, options: Options) -> bool:
        """Whether a step read from a file may have these options; running it says more.  Raises KeyError for one
        that is missing."""
        return True

    def shape(self, output: Tensor, options: Options) -> tuple[int, ...]:
        """The shape of one example in an output; of one in which no example is, the whole."""
        return tuple(output.shape[1:])

    @classmethod
    def reads(cls, target: Any) -> bool:
        """Whether a call of this module class, function or method (by name) is one of this operation."""
        named = not isinstance(target, type) and target_name(target) in cls.function_names
        return named or target in cls.spellings

    @classmethod
    def read(cls, call: Call) -> Any:
        """What the call means: a Signal of the steps that it adds, one for each result, or None where it refuses."""
        return call.add(cls.variant(call), call.source, options=call.options(cls.arguments))

    @classmethod
    def variant(cls, call: Call) -> str:
        """The one of `names` that is called."""
        return call.name if call.name in cls.names else cls.names[0]

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        """The step as a map of its input flattened, with numbers of the dtype and device of `like`.

        An operation that has one has a place in the closed form of fully connected nets (fsdtool.laftr.closed_form).
        """
        raise NotImplementedError

    @property
    def has_vector_map(self) -> bool:
        """Whether `vector_map` is there."""
        return type(self).vector_map is not Operation.vector_map


class Gated(Operation):
    """An operation that the stochastic model replaces by a linear one, under gates that a signal decided."""

    def hold(self, step: Step, s: Tensor) -> tuple[Tensor | None, ...]:
        """What a replay under the gates of the signal s needs, batch in front."""
        raise NotImplementedError

    def replay(self, step: Step, s: Tensor, held: tuple[Tensor | None, ...]) -> Tensor:
        """The step's output on the signal s under the gates held; linear in s."""
        raise NotImplementedError


class Pointwise(Gated):
    """A pointwise function, whose gates have a law that a summary records.

    Held are the slope m and the intercept c (None: zero) at each entry: the output is m s + c.
    """

    kind = ACTIVATION
    entrywise = True

    def function(self, options: Options) -> activations.Activation:
        """The function of a step with these options."""
        raise NotImplementedError

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return self.function(options).function(inputs[0])

    def hold(self, step: Step, s: Tensor) -> tuple[Tensor | None, ...]:
        return self.function(step.options).gate(s)

    def replay(self, step: Step, s: Tensor, held: tuple[Tensor | None, ...]) -> Tensor:
        m, c = held
        assert m is not None  # only the intercept may be
        return m * s if c is None else m * s + c


@dataclass(frozen=True)
class Step:
    """One operation: the indices of the steps it reads, its options, and which parameter plays which role."""

    name: str
    operation: str
    inputs: tuple[int, ...] = ()
    options: Options = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    @property
    def definition(self) -> Operation:
        """The operation of the step's name.  Raises KeyError for one that is unknown."""
        return _KNOWN[self.operation]

    @property
    def kind(self) -> str:
        """'input', 'affine', 'linear', 'activation', 'maximum' or 'function'."""
        return self.definition.kind

    @property
    def units(self) -> int:
        """Scalars per example in the output."""
        return torch.Size(self.shape).numel()

    def activation(self) -> activations.Activation:
        """The pointwise function of an activation step."""
        definition = self.definition
        if not isinstance(definition, Pointwise):
            raise TypeError(f"step '{self.name}' is no activation")
        return definition.function(self.options)

    def shape_of(self, output: Tensor) -> tuple[int, ...]:
        """What `shape` is to be for this output."""
        return self.definition.shape(output, self.options)

    def roles(self, parameters: Parameters) -> dict[str, Tensor]:
        """The step's own parameters by their role, of all by their name."""
        return {role: parameters[name] for role, name in self.parameters.items()}

    def apply(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """The step's output on the signals `inputs`, with the weights `parameters` (by parameter name)."""
        return self.definition.run(inputs, self.roles(parameters), self.options)


def gated(step: Step) -> Gated:
    """The operation of a step that has gates.  Raises TypeError for another."""
    definition = step.definition
    if not isinstance(definition, Gated):
        raise TypeError(f"step '{step.name}' has no gates")
    return definition


def reader(target: Any) -> type[Operation] | None:
    """The operation that a call of this module class, function or method (by name) is one of.

    Raises TypeError where two claim it.
    """
    found = {operation for operation in _READERS if operation.reads(target)}
    if len(found) > 1:
        raise TypeError(f"several operations read {target_name(target)}: {', '.join(cls.__name__ for cls in found)}")
    return found.pop() if found else None


def named(operation: str) -> Operation:
    """The operation of this name.  Raises KeyError for one that is unknown."""
    return _KNOWN[operation]


def names() -> frozenset[str]:
    """The names of every operation."""
    return frozenset(_KNOWN)
