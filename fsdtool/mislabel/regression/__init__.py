"""Which target values of a regression are probably wrong: residuals of each layer's prediction with the example left
out, and a mixture that tells outliers from the tails of right targets.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Misvalued="target_errors", find_misvalued="target_errors")
