"""Which examples are ranked, listed and flagged."""

from __future__ import annotations

import numpy as np
import pytest

from fsdtool.mislabel.suspects import Selection

SCORE = np.array([0.2, 0.9, 0.6, 0.5, 0.7])
ORDER = np.argsort(-SCORE)
FEW = np.array([True, False, True, True, False])


@pytest.mark.parametrize(
    ("selection", "listed", "flagged", "judged"),
    [
        (Selection(), [1, 4, 2], 3, 5),
        (Selection(threshold=0.65), [1, 4], 2, 5),
        (Selection(top=1), [1], 3, 5),
        (Selection(top=9), [1, 4, 2, 3, 0], 3, 5),
        (Selection(everything=True), [1, 4, 2, 3, 0], 3, 5),
        (Selection(mask=FEW), [2], 1, 3),
        (Selection(mask=FEW, top=2), [2, 3], 1, 3),
        (Selection(mask=np.zeros(5, bool)), [], 0, 0),
    ],
)
def test_what_is_listed_flagged_and_counted(selection, listed, flagged, judged):
    found = selection.ranking(SCORE, ORDER)
    assert found.order.tolist() == listed
    assert (found.flagged, found.judged, found.threshold) == (flagged, judged, selection.threshold)
