"""How a model's code becomes a network of steps.

The model is run, not interpreted: what it calls on a few examples is recorded, and each call becomes a step.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, trace_full="trace", Untraceable="comparing")
