"""The summary file: how it is written, opened and checked.  The catalogue, all that concerns training examples, is read
without torch; the reader adds network, statistics and curvature.  Files come from strangers: reading follows no links,
runs no code, and names what is not as expected.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__, Summary="reader", load="reader", Catalogue="catalogue", open_catalogue="catalogue", Writer="writer"
)
