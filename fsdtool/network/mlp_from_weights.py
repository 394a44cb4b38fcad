"""A fully connected network out of its weights alone: W_1 (n_1, n_0), W_2 (n_2, n_1), ... chain from inputs to outputs.

Names and shapes give the layers and their order. The activation is not among the weights: `mlp:relu` says that
it follows every linear layer but the last. Whatever could be meant in two ways is refused, since a network
that is not the one trained gives wrong numbers without a sign.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fsdtool.errors import FsdtoolError, perhaps
from fsdtool.model.factory import check_arguments, parse_value
from fsdtool.model.state_dict_names import PREFIXES, matters, without_wrappers
from fsdtool.network.activations import MODULES

log = logging.getLogger("fsdtool")

ACTIVATIONS: dict[str, type[nn.Module]] = {"identity": nn.Identity} | {
    name: module for module, name in reversed(MODULES.items())
}
_NORM = {"running_mean", "running_var"}


class _Unclear(Exception):
    """Why the weights are not certainly those of a plain fully connected network."""


def infer_mlp(
    state: Mapping[str, Tensor], spec: str | None, arguments: Mapping[str, str] | None = None, *, source: str
) -> nn.Module:
    """The network whose state_dict is `state`, in eval mode, with the activation of `spec` ('mlp:relu').

    `arguments` are those of the activation. Without a spec only a single linear layer can be inferred. Raises
    FsdtoolError where the weights leave more than one network possible; `source` says where they are from.
    """
    name = (spec or "").partition(":")[2]
    if spec and name not in ACTIVATIONS:
        raise FsdtoolError(
            f"--model '{spec}' names no activation{perhaps(name, ACTIVATIONS)}; write for example mlp:relu, mlp:gelu "
            "or mlp:tanh"
        )
    values: dict[str, Any] = {key: parse_value(text) for key, text in (arguments or {}).items()}
    kind = ACTIVATIONS[name or "identity"]
    check_arguments(kind, values, spec=spec or "mlp:identity", usage="--model-arg {}=VALUE")
    try:
        layers = _layers(state)
        if not spec and len(layers) > 1:
            raise FsdtoolError(
                f"--model is left out, and which activation stands in the fully connected network {_widths(layers)} of "
                f"'{source}' is not recorded in it; give --model mlp:relu, mlp:gelu, mlp:tanh or the like"
            )
        layers = _with_activations(layers, kind, values)
        model = _assemble(layers).eval()
    except _Unclear as unclear:
        asked = f"--model {spec} does not fit" if spec else "--model is left out and cannot be inferred from"
        raise FsdtoolError(
            f"{asked} '{source}' ({unclear}); give --model path/file.py:factory, package.module:factory or "
            "torchvision:NAME"
        ) from None
    log.info(f"the model is inferred from the weights: {', '.join(_shown(layer) for _, layer in layers)}")
    return model


def _layers(state: Mapping[str, Tensor]) -> list[tuple[str, nn.Module]]:
    """Linear and BatchNorm1d layers with their names, from the inputs to the outputs."""
    names = {without_wrappers(name): tensor for name, tensor in state.items() if matters(name)}
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None):
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in names.items():
        stem, _, leaf = name.rpartition(".")
        parts.setdefault(stem, {})[leaf] = tensor
    layers = [(stem, _layer(stem, leaves)) for stem, leaves in parts.items()]
    # safetensors stores names in alphabetical order: that of the layers is lost.
    ordered = layers if list(names) != sorted(names) else _in_order(layers)
    width: int | None = None
    for stem, layer in ordered:
        inside = layer.in_features if isinstance(layer, nn.Linear) else layer.num_features
        if width not in (None, inside):
            raise _Unclear(f"'{stem}' takes {inside} inputs and the layer before it gives {width}")
        width = layer.out_features if isinstance(layer, nn.Linear) else width
    if not ordered:
        raise _Unclear("it has no weights")
    if not isinstance(ordered[-1][1], nn.Linear):
        raise _Unclear(f"it ends with batch norm, '{ordered[-1][0]}'")
    return ordered


def _in_order(layers: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The layers by the numbers in their names, or else in the one order in which their widths fit."""
    patterns = {re.sub(r"\d+", "#", stem) for stem, _ in layers}
    if len(patterns) == 1 or all(set(pattern) <= set("#.") for pattern in patterns):
        return sorted(layers, key=lambda layer: [int(number) for number in re.findall(r"\d+", layer[0])])
    if len(layers) > 8 or not all(isinstance(layer, nn.Linear) for _, layer in layers):
        raise _Unclear("its file does not keep the order of the layers, and their names do not tell it")
    chains = [
        order
        for order in itertools.permutations(layers)
        if all(a.out_features == b.in_features for (_, a), (_, b) in itertools.pairwise(order))
    ]
    if len(chains) != 1:
        found = "no order" if not chains else "more than one order"
        raise _Unclear(f"its file does not keep the order of the layers, and their widths fit in {found}")
    return list(chains[0])


def _layer(stem: str, leaves: Mapping[str, Tensor]) -> nn.Module:
    shapes = {leaf: tuple(tensor.shape) for leaf, tensor in leaves.items()}
    weight = shapes.get("weight", ())
    if len(weight) == 2 and set(shapes) <= {"weight", "bias"} and shapes.get("bias", weight[:1]) == weight[:1]:
        return nn.Linear(weight[1], weight[0], bias="bias" in shapes)
    if _NORM <= set(shapes) <= _NORM | {"weight", "bias"} and len(set(shapes.values())) == 1:
        return nn.BatchNorm1d(shapes["running_mean"][0], affine="weight" in shapes)
    leaf, shape = next(iter(shapes.items()))
    name = f"{stem}.{leaf}" if stem else leaf
    raise _Unclear(f"'{name}' of shape {shape} is of neither a linear layer nor batch norm")


def _with_activations(
    layers: list[tuple[str, nn.Module]], kind: type[nn.Module], values: Mapping[str, Any]
) -> list[tuple[str, nn.Module]]:
    """The layers with one activation between each two linear ones."""
    linear = [i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Linear)]
    if linear[0] and not _adjacent(layers[0][0], layers[1][0]):
        raise _Unclear(f"what follows the batch norm '{layers[0][0]}' is not recorded")
    result = layers[: linear[0] + 1]
    for start, end in itertools.pairwise(linear):
        between = layers[start + 1 : end]
        at = _place([name for name, _ in layers[start : end + 1]])
        before, after = [layers[start], *between[:at]], [*between[at:], layers[end]]
        # Named after the layer before it, so that it stands in the same container.
        result += [*before[1:], (f"{before[-1][0]}_activation", kind(**values)), *after]
    return result


def _place(names: list[str]) -> int:
    """How many batch norms come before the activation, given the names of two linear layers and of what is between."""
    if len(names) == 2:
        if "." not in "".join(names) and _adjacent(*names):
            raise _Unclear(f"'{names[0]}' and '{names[1]}' follow each other without room for an activation")
        return 0
    if len(names) > 3:
        raise _Unclear(f"two batch norms follow '{names[0]}'")
    linear, norm, following = names
    before, after = _adjacent(linear, norm), _adjacent(norm, following)
    if before == after:
        raise _Unclear(f"whether the activation comes before or after the batch norm '{norm}' is not recorded")
    return int(before)


def _adjacent(first: str, second: str) -> bool:
    """Whether two names are consecutive numbers of one container."""
    (parent, _, a), (other, _, b) = first.rpartition("."), second.rpartition(".")
    return parent == other and a.isdigit() and b.isdigit() and int(b) == int(a) + 1


def _assemble(layers: list[tuple[str, nn.Module]]) -> nn.Module:
    """Nested Sequentials in which each layer has its name."""
    if layers[0][0] == "":
        return layers[0][1]
    top = nn.Sequential()
    for name, layer in layers:
        *path, last = name.split(".")
        parent: nn.Module = top
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Sequential())
            elif next(reversed(parent._modules)) != part:
                raise _Unclear(f"its layers do not stand in one order: '{name}' comes after others of '{part}'")
            inner = parent._modules[part]
            if not isinstance(inner, nn.Sequential):
                raise _Unclear(f"'{name}' is a part of another layer")
            parent = inner
        parent.add_module(last, layer)
    return top


def _shown(layer: nn.Module) -> str:
    widths = {nn.Linear: ("in_features", "out_features"), nn.BatchNorm1d: ("num_features",)}.get(type(layer))
    return f"{type(layer).__name__}({', '.join(str(getattr(layer, w)) for w in widths)})" if widths else repr(layer)


def _widths(layers: list[tuple[str, nn.Module]]) -> str:
    linear = [layer for _, layer in layers if isinstance(layer, nn.Linear)]
    return "-".join(str(n) for n in [linear[0].in_features, *(layer.out_features for layer in linear)])
