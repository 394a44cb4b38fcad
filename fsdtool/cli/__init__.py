"""The command line: what all commands share, the options, reading what is given, talk; and the only place where an
exception becomes an exit code.  The commands are found in `commands`.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, main="entry")
