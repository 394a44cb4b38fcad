"""The operations that a network may be made of, one module for each family.

An operation is a subclass of Operation with a name: what it computes, whether it is affine, which weights or gates it
has, and how torch spells it.  Every module of this package is imported here, and a class in it counts as soon as it is
defined, so that a new operation is a new file:

    class Roll(Operation):
        names = ("roll",)
        spellings = (torch.roll, "roll")
        arguments = ("shifts", "dims")

        def run(self, inputs, roles, options):
            return torch.roll(inputs[0], options["shifts"], options["dims"])

One with a weight is a Weighted, which says its `positions` (see linear.py); one with gates is a Gated (pooling.py), and
a pointwise function needs no operation of its own (fsdtool.network.activations).  With a `vector_map` it has a place in
the closed form of fully connected networks.
"""

from __future__ import annotations

from fsdtool.network.operations.base import Operation, named, names
from fsdtool.util.discovery import modules_of

__all__ = ["Operation", "named", "names"]

modules_of(__name__)
