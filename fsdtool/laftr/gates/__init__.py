"""Gate policies: how the gates of the reference are drawn on pseudo-samples, and what of them a run under other weights
keeps.  Each is one module here with one class, found by its file's name; `policy.GatePolicy` says what it must answer.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, GatePolicy="policy", policy_of="policy")
