"""A data set opened for reading: one stream of batches of inputs and targets, whatever it is stored as.  Here is what
holds for every format: how rows are read, how labels become classes and stored values inputs, in what layout the model
takes them, and whether the same example comes again.  The formats themselves are in `data.formats`.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, DataSource="source", Preprocessing="preprocessing", load_dataset="formats.load")
