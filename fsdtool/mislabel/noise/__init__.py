"""From the evidence of layers to a judgement on labels, in numpy alone: how far each layer is trusted, which class is
taken for which and how often, and with what probability a label is wrong.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Noise="confusion", Verdict="verdict", Posterior="posterior")
