"""Which training examples a prediction rests on: queries are solved with the curvature, and examples, from the records
or streamed again, are scored against them; the strongest are kept, or all go to a file.  Here too are the gradient
records, self-influence, and the proximal Bregman response that measures what removing an example does.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Scored="scores", influence="scores", self_influence="scores")
