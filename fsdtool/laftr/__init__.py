"""Function space distance from statistics alone (Dhawan et al., ICML 2023): a linear network with stochastic gates, in
closed form or by pseudo-samples pushed forward under gates that the reference decides.  Here are the metrics, the forms
of a distance, its calibration, and the distance as a penalty of a training loop.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Penalty="penalty", Simulation="sampling", measure="metrics")
