"""How far other checkpoints have moved from the summarized one: function space distances with their errors, exact ones
where data is given, and what a summary of the last layer alone can say.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Distance="result", Distances="result", distances="drift")
