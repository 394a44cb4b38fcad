"""Which target values of a regression are probably wrong.  Each layer predicts an example's target from all other
examples; a mixture model of the residuals separates wrong targets from the tails of right ones.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, TargetErrors="target_errors", find_target_errors="target_errors")
