"""Writing a summary: the first sample fixes what must be known beforehand, one pass over the data accumulates, watches
and records, and calibrations measure what the file's answers will be off by.  `run` is the order of it all.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, summarize="run")
