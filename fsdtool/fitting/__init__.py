"""Writing a summary: `preparation` traces the network, `plan` fixes on a first sample what must be known beforehand,
`passes` goes once over the data that the `reader` brings, calibrations measure how far off the file's answers will be,
and `contents` writes.  `run` is the order of it all.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, summarize="run")
