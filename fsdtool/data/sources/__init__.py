"""The kinds of data that `--data` takes, one module each, found by being here: which specs it takes, how they are
opened, what help and the table of accepted data say of it. How arrays and columns become inputs and targets is in
`data.formats`; these modules import nothing heavy, so that help stays quick.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__)
