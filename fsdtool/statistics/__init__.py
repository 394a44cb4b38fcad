"""What is kept of the training data without keeping the data: accumulators that take batches, merge, and end as the
laws of the inputs, gates and outputs of each component of a mixture; anchors, a sample of examples; and how well the
network fits the data.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__,
    Statistics="component_laws",
    StatisticsSums="collector",
    Anchors="anchors",
    AnchorPlan="anchors",
    AnchorRows="anchors",
    Accumulator="merging",
    Sample="sample",
    Fit="fit",
)
