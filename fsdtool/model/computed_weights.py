"""Weights that a network computes from others are made plain: what is traced and compared is the weight itself.

    weight norm       W = g v / |v|, the norm over all dimensions but that of g
    spectral norm     W = V / (u^T V v), V as the matrix whose rows run along one dimension
    pruning           W = V * mask

With the network at hand its own code computes them, whatever the parametrization. Of another checkpoint only names and
values are known: those three are computed from them, all others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from fsdtool.errors import ModelError, some

WEIGHT_NORM, SPECTRAL_NORM, PRUNING = "weight norm", "spectral norm", "pruning"
_SOURCE = re.compile(r"(?P<new>(?:.*\.)?parametrizations\.[^.]+)\..+|(?P<old>.+)_(?:g|v|orig|mask|u)")
_OLD = ("g", "v", "orig", "mask", "u")
_KINDS = {"_WeightNorm": WEIGHT_NORM, "_SpectralNorm": SPECTRAL_NORM}


def computed_weights(model: nn.Module) -> dict[str, str]:
    """The names of weights that the model computes, and how: a kind above, or the classes that do."""
    return {_join(path, name): kind for path, _, name, kind, _ in _each(model)}


def plain_values(model: nn.Module, *, gradients: bool = False) -> dict[str, Tensor]:
    """The values of the computed weights, by name, with `gradients` to their sources; the model stays as it is."""
    with torch.set_grad_enabled(gradients):
        return {_join(path, name): _value(module, name, by) for path, module, name, _, by in _each(model)}


def make_plain(model: nn.Module) -> dict[str, str]:
    """Replace the computed weights by parameters with their values; returns their names, and how they were computed.

    A weight is trainable where one of its sources was.
    """
    made = {}
    for path, module, name, kind, by in list(_each(model)):
        sources = _sources(module, name, by)
        value = _value(module, name, by).detach().clone()
        if by is None:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        elif isinstance(by, WeightNorm):
            remove_weight_norm(module, name)
        elif isinstance(by, SpectralNorm):
            remove_spectral_norm(module, name)
        else:
            prune.remove(module, name)
        if sources:  # else it is a buffer
            setattr(module, name, nn.Parameter(value, requires_grad=any(p.requires_grad for p in sources)))
        made[_join(path, name)] = kind
    return made


def plain_state(
    state: Mapping[str, Tensor], known: Mapping[str, str] | None = None, *, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The state of a checkpoint with computed weights under their plain names, and a note if there were any.

    known: how the summarized network computed them, by plain name, where that is on record. Raises ModelError for
    weights whose computation is not known from names; `source` says where the state is from.
    """
    sources: dict[str, list[str]] = {}
    for key in state:
        if plain := _plain_name(key, state):
            sources.setdefault(plain, []).append(key)
    if not sources:
        return dict(state), []
    result = {key: value for key, value in state.items() if not _plain_name(key, state)}
    unknown = []
    for name, keys in sources.items():
        kind = next((k for n, k in (known or {}).items() if name == n or name.endswith(f".{n}")), None)
        parts = {_part(key, name): state[key] for key in keys}
        value = _compute(parts, kind)
        if value is None:
            unknown.append(name)
        else:
            result[name] = value
    if unknown:
        raise ModelError(
            f"the weights {some(unknown)} of '{source}' are computed by a parametrization that their names do not tell "
            "how; give `model` with the code of the network, or save the state_dict after "
            "torch.nn.utils.parametrize.remove_parametrizations",
            path=source,
        )
    return result, [f"computed {some(list(sources))} from the parts that are stored"]


def _each(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, str, Any]]:
    """Path, module, name, kind and hook (None: a parametrization) of each computed weight."""
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        if parametrize.is_parametrized(module):
            for name, parts in module.parametrizations.items():
                classes = " and ".join(type(part).__name__ for part in parts)
                yield path, module, name, _KINDS.get(classes, classes), None
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                kind = WEIGHT_NORM if isinstance(hook, WeightNorm) else SPECTRAL_NORM
                yield path, module, hook.name, kind, hook
            elif isinstance(hook, prune.BasePruningMethod):
                yield path, module, hook._tensor_name, PRUNING, hook


def _value(module: nn.Module, name: str, by: Any) -> Tensor:
    if by is None:
        return getattr(module, name)
    if isinstance(by, WeightNorm):
        return by.compute_weight(module)
    if isinstance(by, SpectralNorm):
        return by.compute_weight(module, do_power_iteration=False)
    return by.apply_mask(module)


def _sources(module: nn.Module, name: str, by: Any) -> list[nn.Parameter]:
    if by is None:
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        return list(parametrizations[name].parameters())
    kept = {f"{name}_g", f"{name}_v", f"{name}_orig"}
    return [p for n, p in module.named_parameters(recurse=False) if n in kept]


def source_of(key: str, computed: Mapping[str, object]) -> str | None:
    """The computed weight, of these, that the entry `key` of a state_dict is a source of."""
    for name in computed:
        part = _part(key, name)
        if part != key and (part in _OLD or f"{_stem(name)}{part}" == key):
            return name
    return None


def has_sources(names: Mapping[str, object]) -> bool:
    """Whether weights under these names are computed."""
    return any(_plain_name(name, names) for name in names)


def _plain_name(key: str, state: Mapping[str, object]) -> str | None:
    """The name of the weight that the entry `key` is a source of, if it is one."""
    found = _SOURCE.fullmatch(key)
    if not found:
        return None
    if found["new"]:
        return found["new"].replace("parametrizations.", "", 1)
    name = found["old"]
    pairs = (("_g", "_v"), ("_orig", "_mask"), ("_orig", "_u"))
    there = any(f"{name}{a}" in state and f"{name}{b}" in state for a, b in pairs)
    return name if there and name not in state else None


def _part(key: str, name: str) -> str:
    """What the entry is of its weight: g, v, orig, mask, u; or original0, 0._u and so on."""
    stem = _stem(name)
    return key.removeprefix(stem) if key.startswith(stem) else key.removeprefix(f"{name}_")


def _stem(name: str) -> str:
    """What the names of a parametrization's parts begin with."""
    place, _, leaf = name.rpartition(".")
    return _join(place, f"parametrizations.{leaf}.")


def _compute(parts: Mapping[str, Tensor], kind: str | None) -> Tensor | None:
    """The weight, or None where it is not certain how it is computed.

    By the operations that torch's modules use, so that the same parts give the same bits.
    """
    names = set(parts)
    if names == {"g", "v"} or (names == {"original0", "original1"} and kind in (None, WEIGHT_NORM)):
        g, v = (parts[n] for n in sorted(names))
        return _weight_norm(g, v)
    if names == {"orig", "mask"}:
        return parts["mask"].to(parts["orig"].dtype) * parts["orig"]
    if names == {"orig", "u", "v"}:
        return _spectral_norm(parts["orig"], parts["u"], parts["v"])
    if names == {"original", "0._u", "0._v"} and kind in (None, SPECTRAL_NORM):
        return _spectral_norm(parts["original"], parts["0._u"], parts["0._v"])
    return None


def _weight_norm(g: Tensor, v: Tensor) -> Tensor | None:
    if g.dim() == 0:
        return torch._weight_norm(v, g, -1)
    kept = [d for d in range(g.dim()) if g.shape[d] != 1]
    if g.dim() != v.dim() or len(kept) > 1 or any(g.shape[d] != v.shape[d] for d in kept):
        return None
    if not kept and g.numel() == 1:  # the one entry along a dimension of length 1
        kept = [d for d in range(v.dim()) if v.shape[d] == 1]
    return torch._weight_norm(v, g, kept[0]) if kept else v * (g / v.norm())


def _spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    sizes = [(length, weight.numel() // length) for length in weight.shape]
    fitting = [d for d, size in enumerate(sizes) if size == (len(u), len(v))]
    if not fitting:
        return None
    matrix = weight.movedim(fitting[0], 0).flatten(1)
    return weight / torch.dot(u, torch.mv(matrix, v))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
