"""Which labels are probably wrong.  Features of layers are modelled class by class, each model's evidence leaves the
example out, and `find` turns the evidence in the records into a ranking, without torch; `new_labels` judges examples
that came later.  How evidence is weighed is in `mislabel.noise`, target values of a regression in
`mislabel.regression`.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__, Mislabeled="find", find_mislabeled="find", judge="new_labels", find_misvalued="regression.target_errors"
)
