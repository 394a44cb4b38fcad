"""A network as a Graph of steps that a file can hold: traced from a module, or read off the weights of a fully
connected one.  Here are the steps and what runs them, what an output means (logits and links),
and per-example gradients as outer products.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Graph="graph", Network="traced", infer_mlp="mlp_from_weights")
