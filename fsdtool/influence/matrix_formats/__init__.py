"""The formats of the file of all influences: each is one module here, of its suffix's name, found by being there, so
that a new format is a new file.  `matrix_format` says what a format does.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, MatrixFormat="matrix_format", format_of="matrix_format")
