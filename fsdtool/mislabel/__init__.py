"""Which labels are probably wrong.  `summarize` models the features of each layer class by class and records how well
each class explains an example when the example is left out of its own class model.  `find` ranks the summarized
examples by that evidence, without torch; `new_labels` ranks examples that came later.  How the evidence of the layers
is added up is in `mislabel.noise`, several labels of an example in `mislabel.multilabel`, target
values of a regression in `mislabel.regression`.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__,
    Suspects="suspects",
    Mislabeled="find",
    find_mislabeled="find",
    score_new_labels="new_labels",
    find_label_errors="multilabel.label_errors",
    find_target_errors="regression.target_errors",
)
