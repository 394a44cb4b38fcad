"""A network as an ordered list of steps, each affine, linear, an activation or a maximum.

The steps are plain data (names, numbers, parameter names), so a summary file can hold them and run them
without the user's code.  Signals carry the batch in front: a step of shape (C, H, W) gives (batch, C, H, W).

    affine      parameters act on the signal: linear, conv1d/2d/3d, batch_norm (eval), adding or
                multiplying by one
    linear      no parameters: average pooling, reshape, permute, add, subtract, concatenate, slice, pad,
                scale
    activation  pointwise, a gate per unit (see fsdtool.activations)
    maximum     max pooling: a gate too, it keeps the position that the reference's maximum chose
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdtool import activations
from fsdtool.errors import FsdtoolError
from fsdtool.fields import is_whole

Options = dict[str, Any]
Parameters = Mapping[str, Tensor]
GateRule = Callable[["Step", Tensor], Tensor]
Observer = Callable[["Step", list[Tensor], Tensor], Tensor | None]

LARGEST_SHAPE = 2**48  # scalars of a signal, far beyond any
WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d")


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
    def kind(self) -> str:
        """'input', 'affine', 'linear', 'activation' or 'maximum'."""
        return OPERATIONS[self.operation][0]

    @property
    def units(self) -> int:
        """Scalars per example in the output."""
        return torch.Size(self.shape).numel()

    def activation(self) -> activations.Activation:
        """The pointwise function of an activation step."""
        return activations.activation(self.options["function"], self.options.get("settings"))

    def apply(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """The step's output on the signals `inputs`, with the weights `parameters` (by parameter name)."""
        roles = {role: parameters[name] for role, name in self.parameters.items()}
        return OPERATIONS[self.operation][1](inputs, roles, self.options)


@dataclass(frozen=True)
class Graph:
    """The steps of a network in order: step 0 is the input, the last gives the logits (batch, O).

    frozen: names of parameters that training left alone, and of which influence and curvature are not.
    """

    steps: tuple[Step, ...]
    frozen: frozenset[str] = frozenset()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.steps[0].shape

    @property
    def outputs(self) -> int:
        """Number of outputs O (classes, or regression targets)."""
        return self.steps[-1].shape[0]

    def indices(self, *kinds: str) -> list[int]:
        """Positions of the steps of these kinds."""
        return [i for i, step in enumerate(self.steps) if step.kind in kinds]

    def weight_uses(self) -> dict[str, tuple[list[int], str | None]]:
        """Each trained weight of a linear or convolution step, in order of first use: its steps, and the trained bias
        they share."""
        uses: dict[str, list[int]] = {}
        for i, step in enumerate(self.steps):
            if step.operation in WEIGHTED and step.parameters["weight"] not in self.frozen:
                uses.setdefault(step.parameters["weight"], []).append(i)
        biases = {weight: {self.steps[i].parameters.get("bias") for i in steps} for weight, steps in uses.items()}
        shared = {weight: found.pop() if len(found) == 1 else None for weight, found in biases.items()}
        return {w: (steps, None if shared[w] in self.frozen else shared[w]) for w, steps in uses.items()}

    def parameter_names(self) -> list[str]:
        """Every parameter and buffer that a step reads, in order of first use."""
        return list(dict.fromkeys(name for step in self.steps for name in step.parameters.values()))

    def run(
        self,
        parameters: Parameters,
        x: Tensor,
        *,
        gate: GateRule | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Logits (batch, O) of inputs x (batch, *input_shape).

        `gate(step, s)`, when given, stands in for activations and maxima: it returns the step's output for
        the incoming signal s.  `observe(step, inputs, output)` sees every step as it runs, and replaces the
        output by what it returns unless that is None.
        """
        last_use = self._last_use()
        values: dict[int, Tensor] = {}
        for i, step in enumerate(self.steps):
            inputs = [values[j] for j in step.inputs]
            if step.kind == "input":
                # On CPUs this makes convolutions over few channels and max pooling several times faster.
                output = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            elif gate is not None and step.kind in ("activation", "maximum"):
                output = gate(step, inputs[0])
            else:
                output = step.apply(inputs, parameters)
            if observe is not None:
                replaced = observe(step, inputs, output)
                output = output if replaced is None else replaced
            values[i] = output
            for j in step.inputs:
                if last_use[j] == i:
                    values.pop(j, None)
        return values[len(self.steps) - 1]

    def _last_use(self) -> dict[int, int]:
        return {j: i for i, step in enumerate(self.steps) for j in step.inputs}

    def channels_last(self, index: int) -> bool:
        """Whether step `index` has its channels last: it follows a Linear, not a convolution."""
        while index:
            step = self.steps[index]
            if step.kind == "affine" and step.operation in (
                "linear",
                "conv1d",
                "conv2d",
                "conv3d",
                "batch_norm",
            ):
                return step.operation == "linear"
            index = step.inputs[0]
        return len(self.input_shape) == 1

    def is_chain(self) -> bool:
        """Whether the net is fully connected: vectors through linear, batch norm and pointwise steps."""
        allowed = {"input", "linear", "batch_norm", "activation", "reshape", "identity", "scale", "shift"}
        return all(
            step.operation in allowed and (i == 0 or step.inputs == (i - 1,)) for i, step in enumerate(self.steps)
        ) and all(len(self.steps[i].shape) == 1 for i in self.indices("affine", "activation"))

    def to_json(self) -> list[dict[str, Any]]:
        """The steps as JSON values."""
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_json(cls, steps: list[dict[str, Any]]) -> Graph:
        """The inverse of `to_json`.  Raises FsdtoolError when the steps are not a well-formed network."""
        try:
            built = tuple(
                Step(
                    name=str(step["name"]),
                    operation=step["operation"],
                    inputs=tuple(step["inputs"]),
                    options=_tuples(step["options"]),
                    parameters={str(role): str(name) for role, name in step["parameters"].items()},
                    shape=tuple(step["shape"]),
                )
                for step in steps
            )
            well_formed = all(
                step.operation in OPERATIONS
                and all(is_whole(n) and n > 0 for n in step.shape)
                and math.prod(step.shape) <= LARGEST_SHAPE
                and all(is_whole(j) and 0 <= j < i for j in step.inputs)
                and bool(step.inputs) == (i > 0)
                and (step.operation == "input") == (i == 0)
                and (step.kind != "activation" or step.options["function"] in activations.names())
                for i, step in enumerate(built)
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise FsdtoolError(
                f"the network in the summary cannot be read ({error!r}); write the summary again"
            ) from error
        if not built or not well_formed or len(built[-1].shape) != 1:
            raise FsdtoolError("the network in the summary is not a well-formed list of steps; write the summary again")
        return cls(built)


def _tuples(options: Options) -> Options:
    """JSON turns tuples into lists; torch's functions want them back."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def select_maximum(step: Step, s: Tensor) -> Tensor:
    """Flat positions (batch, C, prod of pooled shape) of the maxima that a max-pooling step keeps of s."""
    dimensions = len(step.shape) - 1
    if step.operation.startswith("adaptive"):
        pool = getattr(F, f"adaptive_max_pool{dimensions}d")
        return pool(s, return_indices=True, **step.options)[1].flatten(2)
    pool = getattr(F, f"max_pool{dimensions}d")
    return pool(s, return_indices=True, **step.options)[1].flatten(2)


def keep_positions(step: Step, s: Tensor, positions: Tensor) -> Tensor:
    """The entries of s (batch, C, ...) at `positions` (batch, C, P), in the step's output shape."""
    return s.flatten(2).gather(2, positions).unflatten(2, step.shape[1:])


def _convolve(name: str) -> Callable[..., Tensor]:
    def apply(inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, name)(inputs[0], roles["weight"], roles.get("bias"), **options)

    return apply


def _batch_norm(inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
    """Eval mode as one scale and shift per channel: its gradient is a multiplication, cheaper than F's."""
    scale = torch.rsqrt(roles["running_var"] + options["eps"])
    scale = scale * roles["weight"] if "weight" in roles else scale
    shift = -roles["running_mean"] * scale
    shift = shift + roles["bias"] if "bias" in roles else shift
    shape = (-1, *[1] * (inputs[0].dim() - 2))
    return torch.addcmul(shift.view(shape), inputs[0], scale.view(shape))


def _pool(name: str) -> Callable[..., Tensor]:
    return lambda inputs, roles, options: getattr(F, name)(inputs[0], **options)


def _slice(inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
    dim, stride = options["dim"], options.get("stride", 1)
    stop = options["start"] + options["length"] * stride
    x = inputs[0][(slice(None),) * dim + (slice(options["start"], stop, stride),)]
    return x.squeeze(dim) if options["squeeze"] else x


def _parameter(roles: Parameters, options: Options) -> Tensor:
    return roles["parameter"].reshape(options["shape"])


OPERATIONS: dict[str, tuple[str, Callable[[Sequence[Tensor], Parameters, Options], Tensor]]] = {
    "input": ("input", lambda inputs, roles, options: inputs[0]),
    "linear": (
        "affine",
        lambda inputs, roles, options: F.linear(inputs[0], roles["weight"], roles.get("bias")),
    ),
    "conv1d": ("affine", _convolve("conv1d")),
    "conv2d": ("affine", _convolve("conv2d")),
    "conv3d": ("affine", _convolve("conv3d")),
    "batch_norm": ("affine", _batch_norm),
    "add_parameter": (
        "affine",
        lambda inputs, roles, options: inputs[0] + options["sign"] * _parameter(roles, options),
    ),
    "multiply_parameter": ("affine", lambda inputs, roles, options: inputs[0] * _parameter(roles, options)),
    "divide_parameter": ("affine", lambda inputs, roles, options: inputs[0] / _parameter(roles, options)),
    "avg_pool1d": ("linear", _pool("avg_pool1d")),
    "avg_pool2d": ("linear", _pool("avg_pool2d")),
    "avg_pool3d": ("linear", _pool("avg_pool3d")),
    "adaptive_avg_pool1d": ("linear", _pool("adaptive_avg_pool1d")),
    "adaptive_avg_pool2d": ("linear", _pool("adaptive_avg_pool2d")),
    "adaptive_avg_pool3d": ("linear", _pool("adaptive_avg_pool3d")),
    "mean": ("linear", lambda inputs, roles, options: inputs[0].mean(options["dim"], options["keepdim"])),
    "sum": ("linear", lambda inputs, roles, options: inputs[0].sum(options["dim"], options["keepdim"])),
    "reshape": ("linear", lambda inputs, roles, options: inputs[0].reshape(len(inputs[0]), *options["shape"])),
    "permute": ("linear", lambda inputs, roles, options: inputs[0].permute(options["dims"])),
    "pad": ("linear", lambda inputs, roles, options: F.pad(inputs[0], options["pad"], options["mode"])),
    "slice": ("linear", _slice),
    "scale": ("linear", lambda inputs, roles, options: inputs[0] * options["factor"]),
    "shift": ("linear", lambda inputs, roles, options: inputs[0] + options["constant"]),
    "add": ("linear", lambda inputs, roles, options: inputs[0] + inputs[-1]),
    "subtract": ("linear", lambda inputs, roles, options: inputs[0] - inputs[-1]),
    "concatenate": ("linear", lambda inputs, roles, options: torch.cat(list(inputs), options["dim"])),
    "identity": ("linear", lambda inputs, roles, options: inputs[0]),
    "activation": (
        "activation",
        lambda inputs, roles, options: activations.activation(options["function"], options["settings"]).function(
            inputs[0]
        ),
    ),
    "max_pool1d": ("maximum", _pool("max_pool1d")),
    "max_pool2d": ("maximum", _pool("max_pool2d")),
    "max_pool3d": ("maximum", _pool("max_pool3d")),
    "adaptive_max_pool1d": ("maximum", _pool("adaptive_max_pool1d")),
    "adaptive_max_pool2d": ("maximum", _pool("adaptive_max_pool2d")),
    "adaptive_max_pool3d": ("maximum", _pool("adaptive_max_pool3d")),
}
