"""From the evidence of the layers to the probability that a label is wrong: the weight of each layer, how often one
class is labelled as another, and how many labels are wrong.  Without torch, except for labels that no layer has
learned (`stacking`).  tests/benchmarks/mislabel_constants.py measures how much the constants here matter.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Noise="confusion", Verdict="verdict", Posterior="posterior")
