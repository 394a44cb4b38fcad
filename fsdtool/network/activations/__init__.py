"""Pointwise functions as gates: what a gate is, and the functions that are known.

Every module of this package is imported here and registers its functions, so that a new one is a new file:

    register("erf", torch.erf)
"""

from __future__ import annotations

from fsdtool.network.activations.gates import (
    MODULES,
    PIECEWISE,
    Activation,
    Pieces,
    activation,
    module_options,
    names,
    option_defaults,
    register,
    spelt,
)
from fsdtool.util.discovery import modules_of

__all__ = [
    "MODULES",
    "PIECEWISE",
    "Activation",
    "Pieces",
    "activation",
    "module_options",
    "names",
    "option_defaults",
    "register",
    "spelt",
]

modules_of(__name__)
