"""Pointwise activations as gates: phi(s) = m s + c with slope m = phi'(s).

A piecewise linear activation is a choice among a few lines: piece j holds on one interval of s and has a
slope and an intercept there.  ReLU has the pieces (0, 0) and (1, 0), ReLU6 has a third, (0, 6).  Its law
over a set of examples is the probability of each piece, per unit; for ReLU that is the gate probability mu
of LAFTR (Dhawan et al., ICML 2023).  A smooth activation has no finite set of pieces, so its law is kept as
the five moments E[m], E[m^2], E[c], E[m c], E[c^2], which is all the closed form needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


# name -> (function, its options with their defaults), spelt as in torch.nn.functional
SMOOTH: dict[str, tuple[Callable[..., Tensor], dict[str, object]]] = {
    "gelu": (F.gelu, {"approximate": "none"}),
    "silu": (F.silu, {}),
    "mish": (F.mish, {}),
    "elu": (F.elu, {"alpha": 1.0}),
    "celu": (F.celu, {"alpha": 1.0}),
    "selu": (F.selu, {}),
    "tanh": (torch.tanh, {}),
    "sigmoid": (torch.sigmoid, {}),
    "logsigmoid": (F.logsigmoid, {}),
    "softplus": (F.softplus, {"beta": 1.0, "threshold": 20.0}),
    "softsign": (F.softsign, {}),
    "tanhshrink": (F.tanhshrink, {}),
    "hardswish": (F.hardswish, {}),
    "sin": (torch.sin, {}),
    "cos": (torch.cos, {}),
    "exp": (torch.exp, {}),
    "square": (torch.square, {}),
}

PIECEWISE: dict[str, tuple[Callable[..., Tensor], dict[str, object], Callable[..., Pieces]]] = {
    "relu": (F.relu, {}, lambda: Pieces((0.0,), (0.0, 1.0), (0.0, 0.0))),
    "relu6": (F.relu6, {}, lambda: Pieces((0.0, 6.0), (0.0, 1.0, 0.0), (0.0, 0.0, 6.0))),
    "leaky_relu": (
        F.leaky_relu,
        {"negative_slope": 0.01},
        lambda negative_slope: Pieces((0.0,), (negative_slope, 1.0), (0.0, 0.0)),
    ),
    "hardtanh": (
        F.hardtanh,
        {"min_val": -1.0, "max_val": 1.0},
        lambda min_val, max_val: Pieces((min_val, max_val), (0.0, 1.0, 0.0), (min_val, 0.0, max_val)),
    ),
    "hardsigmoid": (F.hardsigmoid, {}, lambda: Pieces((-3.0, 3.0), (0.0, 1 / 6, 0.0), (0.0, 0.5, 1.0))),
    "abs": (torch.abs, {}, lambda: Pieces((0.0,), (-1.0, 1.0), (0.0, 0.0))),
}

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.RReLU: "leaky_relu",
    nn.Hardtanh: "hardtanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.LogSigmoid: "logsigmoid",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.Tanhshrink: "tanhshrink",
    nn.Hardswish: "hardswish",
}

# torch and tensor-method spellings that differ from the table's names
ALIASES = {
    "relu_": "relu",
    "sigmoid_": "sigmoid",
    "tanh_": "tanh",
    "absolute": "abs",
    "log_sigmoid": "logsigmoid",
}


def names() -> frozenset[str]:
    """Every activation that can be traced."""
    return frozenset(SMOOTH) | frozenset(PIECEWISE)


def spelt(name: str) -> str:
    """The activation's name that torch spells as the function or method `name`."""
    return ALIASES.get(name, name)


def option_defaults(name: str) -> dict[str, object]:
    """The options of activation `name`, in positional order, with their defaults."""
    return dict(PIECEWISE[name][1] if name in PIECEWISE else SMOOTH[name][1])


def module_options(module: nn.Module) -> dict[str, object]:
    """The options of an activation module, as its functional form takes them."""
    if isinstance(module, nn.RReLU):  # in eval mode the slope is the middle of its range
        return {"negative_slope": (module.lower + module.upper) / 2}
    return {key: getattr(module, key) for key in option_defaults(MODULES[type(module)]) if hasattr(module, key)}


def activation(name: str, options: Mapping[str, object] | None = None) -> Activation:
    """The activation `name` with `options` (those left out take torch's defaults).

    Raises KeyError for a name that `names()` does not hold.
    """
    settings = {**option_defaults(name), **(options or {})}
    if name in PIECEWISE:
        function, _, pieces = PIECEWISE[name]
        return Activation(lambda s: function(s, **settings), pieces(**settings))
    function, _ = SMOOTH[name]
    return Activation(lambda s: function(s, **settings))
