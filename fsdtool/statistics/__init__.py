"""What is kept of the training data without keeping the data: accumulators that take a batch, merge and end as the laws
of the inputs, gates and outputs of each component of a mixture; a sample of anchors; and how well the network fits.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__,
    Statistics="component_laws",
    StatisticsSums="collector",
    Anchors="anchors",
    AnchorRows="anchors",
    Fit="fit",
)
