"""The kinds of data that a spec may name, one module each: which of the arrays, columns, folders or items are inputs,
targets and ids.  `load` tells them apart; files are told by the SUFFIXES of the modules, so that a new kind of file is
a new module.  A format gives what is found and a reader of its rows; all else is done by `data`.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, load_dataset="load")
