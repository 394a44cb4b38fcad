"""Which of several labels of an example are probably wrong.  Each layer predicts a label from all other examples, as it
does a target of a regression; how often the surest predictions are contradicted tells how many labels are flipped.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, LabelErrors="label_errors", find_label_errors="label_errors")
