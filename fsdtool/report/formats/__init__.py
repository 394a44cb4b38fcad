"""The formats of rows, some to a module: whatever module here has FORMATS is found, so that a new format is a new file,
and can be asked for by its name by being there.  `row_format` says what a format is given.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Checks="row_format", RowFormat="row_format")
