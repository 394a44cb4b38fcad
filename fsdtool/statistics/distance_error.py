"""What is known of the error of distances from a summary (measured by fsdtool.laftr.distance_calibration)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

UNKNOWN = 1e6  # relative error where nothing could be compared
FLOOR = 0.01  # least relative error that is stated: rounding of what is kept


@dataclass(frozen=True)
class DistanceCalibration:
    """What is known of the error of distances in one `form`, by metric.

    changes: how many changes of the weights were measured, on `examples` examples (0 and 0: nothing to measure, since
    inputs are kept whole).  correction: what a distance is multiplied by.  error: its relative error, corrected.
    """

    form: str
    changes: int
    examples: int
    correction: Mapping[str, float]
    error: Mapping[str, float]

    def __str__(self) -> str:
        """For people: what distances in the default form rest on, and how far they are off."""
        if self.form == "none":
            return "only over data given: no examples are kept, and none can be simulated"
        kept = "kept examples" if self.form == "examples" else "simulated examples"
        if not self.changes:
            return f"over {kept}, exact for them"
        metric = next(iter(self.error))
        error = f"{self.error[metric]:.0%}" if self.error[metric] < UNKNOWN else "an unknown factor"
        return f"over {kept}, {metric} off by about {error} (of {self.changes} changes of the weights)"

    def model_error(self, metric: str, distance: float, standard_error: float | None) -> float:
        """Relative error to expect of a distance, its sampling included."""
        sampling = (standard_error or 0.0) / distance if distance > 0 else 0.0
        return max(math.hypot(self.error[metric], sampling), FLOOR)
