"""How data is stored, a module for each way: which of the arrays, columns, folders or items are inputs, targets and
ids, and how their rows are read.  A format gives what is found and a reader of its rows; all else is done by `data`.
`data.sources` says which spec is opened as what, and `load` opens one.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, load_dataset="load")
