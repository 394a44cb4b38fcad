"""What moves the entries of a signal or leaves some out, and what leaves it as it is."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import INPUT, Operation, Options, Parameters, Step, VectorMap
from fsdtool.network.operations.calls import EXAMPLES, Call, Signal


class Input(Operation):
    """The network's input, the first step and no other."""

    names = ("input",)
    kind = INPUT

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0]


class Identity(Operation):
    """The signal as it is: such calls add no step."""

    names = ("identity",)
    spellings = (
        *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, "contiguous", "clone", "to", "float"),
    )
    function_names = ("stochastic_depth",)
    entrywise = True

    @classmethod
    def read(cls, call: Call) -> Any:
        if call.module is not None:
            return call.source
        if call.value.dtype != call.before.dtype:
            return call.refuse("a change of dtype")
        if not torch.equal(call.value, call.before):
            return call.refuse("noise that is not only for training")
        return call.source

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0]

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        return VectorMap()


class Reshape(Operation):
    """The entries of each example in another shape."""

    names = ("reshape",)
    spellings = (
        *(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten),
        *("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "view_as", "reshape_as"),
    )

    @classmethod
    def read(cls, call: Call) -> Any:
        entries = EXAMPLES * math.prod(call.shape(call.source))
        if call.value.shape[0] != EXAMPLES or call.value.numel() != entries:
            return call.refuse("a reshape that mixes examples")
        return call.add("reshape", call.source, options={"shape": tuple(call.value.shape[1:])})

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *options["shape"])

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        return VectorMap()


class Permute(Operation):
    """The dimensions in the order `dims`, the batch first."""

    names = ("permute",)
    spellings = (torch.permute, torch.transpose, "permute", "transpose")

    @classmethod
    def read(cls, call: Call) -> Any:
        rank = call.value.dim()
        given: Sequence[Any] = call.arguments[1:]
        given = given if len(given) > 1 else (*given, *call.keywords.values())
        given = given[0] if given and isinstance(given[0], (tuple, list)) else given
        dims = [d % rank for d in given if isinstance(d, int)]
        if call.name == "transpose" and len(dims) == 2:
            order = list(range(rank))
            order[dims[0]], order[dims[1]] = dims[1], dims[0]
            dims = order
        if len(dims) != rank or dims[0] != 0:
            return call.refuse("a permutation that moves the batch")
        return call.add("permute", call.source, options={"dims": tuple(dims)})

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0].permute(options["dims"])


class Pad(Operation):
    """Zeros around the signal, or what the `mode` of F.pad says."""

    names = ("pad",)
    spellings = (F.pad,)

    @classmethod
    def read(cls, call: Call) -> Any:
        given = call.given(("pad", "mode", "value"))
        if given.pop("value", None):
            return call.refuse("padding with a value other than zero")
        return call.add("pad", call.source, options={"mode": "constant", **given, "pad": tuple(given["pad"])})

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return F.pad(inputs[0], options["pad"], options["mode"])


class ZeroFirst(Operation):
    """[0, z] of a vector z: the two logits of a network that has one, added when it is read."""

    names = ("zero_first",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return F.pad(inputs[0], (1, 0))

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        inside = torch.eye(step.units - 1, dtype=like.dtype, device=like.device)
        return VectorMap(F.pad(inside, (0, 0, 1, 0)))


class Slice(Operation):
    """`length` entries along `dim` from `start` on, every `stride`-th; the one left is squeezed away by `squeeze`.

    chunk, split and unbind give several.
    """

    names = ("slice",)
    spellings = (operator.getitem, torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind")
    first_is_signal = False

    @classmethod
    def read(cls, call: Call) -> Any:
        if call.first is None:
            return call.other()
        return _read_index(call, call.source) if call.target is operator.getitem else _read_split(call, call.source)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        dim, stride = options["dim"], options.get("stride", 1)
        stop = options["start"] + options["length"] * stride
        x = inputs[0][(slice(None),) * dim + (slice(options["start"], stop, stride),)]
        return x.squeeze(dim) if options["squeeze"] else x


def _read_split(call: Call, source: Signal) -> list[Signal] | None:
    squeeze = call.name == "unbind"
    dim = call.given(("dim",) if squeeze else ("count", "dim")).get("dim", 0) % (len(call.shape(source)) + 1)
    if dim == 0:
        return call.refuse("a split of the batch")
    lengths = [1 if squeeze else part.shape[dim] for part in call.value]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    slices = [
        {"dim": dim, "start": start, "length": length, "squeeze": squeeze}
        for start, length in zip(starts, lengths, strict=True)
    ]
    return [call.add("slice", source, options=options) for options in slices]


def _read_index(call: Call, source: Signal) -> Signal | None:
    index, lengths = call.arguments[1], call.shape(source)
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(entry is Ellipsis for entry in entries):
        at = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
        entries[at : at + 1] = [slice(None)] * (len(lengths) + 2 - len(entries))
    if entries[:1] != [slice(None)] or not all(isinstance(entry, (int, slice)) for entry in entries):
        return call.refuse("indexing along the batch, by a list or with None")
    dim = 1
    for entry, length in zip(entries[1:], lengths, strict=False):
        squeeze = isinstance(entry, int)
        taken = range(length)[entry % length : entry % length + 1] if squeeze else range(length)[entry]
        if squeeze or taken != range(length):
            options = {"dim": dim, "start": taken.start, "length": len(taken), "squeeze": squeeze}
            source = call.add("slice", source, options=options | {"stride": taken.step})
        dim += not squeeze
    return source
