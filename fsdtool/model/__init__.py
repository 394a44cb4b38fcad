"""The user's network and its weights: the code that a spec names builds the one, the checkpoint gives the other,
whatever trained it.  Files are read without running code, weights are found under wrappers and prefixes, and those that
a network computes from others are made plain.  Whether the network can be traced is asked in the next room, `network`.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__, load_model="factory", Checkpoint="checkpoint", read_checkpoint="checkpoint", apply_checkpoint="checkpoint"
)
