"""Binary classification by one logit z: the loss is the binary cross-entropy of p = sigmoid(z), in nats.

It is the classification of two classes with the outputs [0, z], whose softmax is [1 - p, p]; the network gets the zero
as a step of its own (fsdtool.network.tracing.endings).  So everything that is known of classes holds here, and the file
says of which kind the network was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsdtool.errors import DataError
from fsdtool.tasks.classification import Classification
from fsdtool.util.lazy import Later

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
else:
    np = Later("numpy")


class Binary(Classification):
    """Targets (n,) int64, 0 or 1; outputs (n, 2), the first zero where the network has one."""

    name = "binary"

    def targets(self, stored: np.ndarray, ids: np.ndarray, lenient: bool = False) -> np.ndarray:
        """Labels (N,) int64, as of a classification.  Raises DataError for others than 0 and 1; lenient: floats."""
        y = super().targets(stored, ids, lenient)
        bad = np.flatnonzero(y > 1)
        if len(bad) and not lenient:
            raise _neither(y[bad[0]], ids[bad[0]])
        return y

    def target_of(self, number: float) -> float | None:
        """The number, if it is 0 or 1."""
        return int(number) if number in (0, 1) else None

    def check_targets(self, targets: Tensor, ids: np.ndarray, outputs: int, source: str = "", remedy: str = "") -> None:
        """Raise DataError for a network of other than two logits, and for a label of the targets (n,) above 1."""
        if outputs != 2:
            raise DataError(f"the model has {outputs} outputs, and a binary task is of one; leave `task` out")
        outside = (targets > 1).nonzero()
        if len(outside):
            row = int(outside[0])
            raise _neither(int(targets[row]), ids[row])


def _neither(label: float, name: Any) -> DataError:
    """The error for a label that is neither 0 nor 1."""
    return DataError(
        f"label {label:g} of example {name} is neither 0 nor 1, and one output is the logit of class 1 against class "
        '0; correct it, or give `task="regression"` where the targets are numbers',
        example=name,
    )
