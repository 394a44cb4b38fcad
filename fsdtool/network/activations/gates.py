"""Pointwise activations as gates: phi(s) = m s + c with slope m = phi'(s).

A piecewise linear activation is a choice among a few lines: piece j holds on one interval of s and has a
slope and an intercept there.  ReLU has the pieces (0, 0) and (1, 0), ReLU6 has a third, (0, 6).  Its law
over a set of examples is the probability of each piece, per unit; for ReLU that is the gate probability mu
of LAFTR (Dhawan et al., ICML 2023).  A smooth activation has no finite set of pieces, so its law is kept as
the five moments E[m], E[m^2], E[c], E[m c], E[c^2], which is all the closed form needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pieces:
    """The lines of a piecewise linear activation, from the lowest interval of s to the highest.

    `breaks` has one entry less than `slopes` and `intercepts`; piece j holds for breaks[j-1] < s <=
    breaks[j].
    """

    breaks: tuple[float, ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]

    def above(self, s: Tensor, j: int) -> Tensor:
        """1 where s is above break j, else 0, in the shape and dtype of s (a cast of `s > break` is much slower)."""
        return torch.gt(s, self.breaks[j], out=torch.empty_like(s))

    def at(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Slope m and intercept c at each entry of s, each of its shape and not to be written to."""
        if self.slopes == (0.0, 1.0) and self.through_origin:
            return self.above(s, 0), torch.zeros_like(s[:1]).expand_as(s)
        slope, intercept = torch.full_like(s, self.slopes[0]), torch.full_like(s, self.intercepts[0])
        for j in range(len(self.breaks)):
            above = self.above(s, j)
            slope.add_(above, alpha=self.slopes[j + 1] - self.slopes[j])
            intercept.add_(above, alpha=self.intercepts[j + 1] - self.intercepts[j])
        return slope, intercept

    def gate(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Slope m and intercept c of the pieces `index`, each of its shape."""
        slopes = torch.tensor(self.slopes, dtype=dtype, device=index.device)
        intercepts = torch.tensor(self.intercepts, dtype=dtype, device=index.device)
        return slopes[index], intercepts[index]

    @property
    def through_origin(self) -> bool:
        """Whether every intercept is zero, so that phi(s) = m s."""
        return not any(self.intercepts)


@dataclass(frozen=True)
class Activation:
    """A pointwise function, and its pieces where it is piecewise linear."""

    function: Callable[[Tensor], Tensor]
    pieces: Pieces | None = None

    def gate(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Slope m = phi'(s) and intercept c = phi(s) - m s, each of the shape of s."""
        if self.pieces is not None:
            return self.pieces.at(s.detach())
        with torch.enable_grad():
            point = s.detach().requires_grad_()
            value = self.function(point)
            (slope,) = torch.autograd.grad(value.sum(), point)
        return slope, value.detach() - slope * s.detach()


@dataclass(frozen=True)
class Registered:
    """A function that can be traced, its options with their defaults in positional order, and its pieces with these."""

    function: Callable[..., Tensor]
    defaults: Mapping[str, object]
    pieces: Callable[..., Pieces] | None = None


PIECEWISE: dict[str, Registered] = {}
SMOOTH: dict[str, Registered] = {}
MODULES: dict[type[nn.Module], str] = {}
_ALIASES: dict[str, str] = {}
_READ: dict[type[nn.Module], Callable[[nn.Module], dict[str, object]]] = {}


def register(
    name: str,
    function: Callable[..., Tensor],
    *modules: type[nn.Module],
    defaults: Mapping[str, object] | None = None,
    pieces: Callable[..., Pieces] | None = None,
    aliases: Sequence[str] = (),
) -> None:
    """Make known the pointwise `function`(s, **options), named as torch.nn.functional or the tensor's method is.

    defaults: its options in positional order.  pieces: its lines for these options, where it is piecewise linear.
    modules: classes that apply it and have the options as attributes.  aliases: other names of the function.
    Raises ValueError for a name that is taken.
    """
    taken = [word for word in (name, *aliases) if spelt(word) in names()]
    taken += [module.__name__ for module in modules if module in MODULES]
    if taken:
        raise ValueError(f"there is a pointwise function '{taken[0]}' already")
    (SMOOTH if pieces is None else PIECEWISE)[name] = Registered(function, dict(defaults or {}), pieces)
    MODULES.update(dict.fromkeys(modules, name))
    _ALIASES.update(dict.fromkeys(aliases, name))


def register_module(module: type[nn.Module], name: str, options: Callable[[nn.Module], dict[str, object]]) -> None:
    """Make known a class that applies the function `name` with `options`(module)."""
    MODULES[module], _READ[module] = name, options


def names() -> frozenset[str]:
    """Every activation that can be traced."""
    return frozenset(SMOOTH) | frozenset(PIECEWISE)


def spelt(name: str) -> str:
    """The activation's name that torch spells as the function or method `name`."""
    return _ALIASES.get(name, name)


def option_defaults(name: str) -> dict[str, object]:
    """The options of activation `name`, in positional order, with their defaults."""
    return dict(_registered(name).defaults)


def module_options(module: nn.Module) -> dict[str, object]:
    """The options of an activation module, as its functional form takes them."""
    kind = type(module)
    if kind in _READ:
        return _READ[kind](module)
    return {key: getattr(module, key) for key in option_defaults(MODULES[kind]) if hasattr(module, key)}


def activation(name: str, options: Mapping[str, object] | None = None) -> Activation:
    """The activation `name` with `options` (those left out take torch's defaults).

    Raises KeyError for a name that `names()` does not hold.
    """
    found = _registered(name)
    settings = {**found.defaults, **(options or {})}
    pieces = None if found.pieces is None else found.pieces(**settings)
    return Activation(lambda s: found.function(s, **settings), pieces)


def _registered(name: str) -> Registered:
    return PIECEWISE[name] if name in PIECEWISE else SMOOTH[name]
