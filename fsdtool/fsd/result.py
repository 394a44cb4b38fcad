"""What is found of each checkpoint: its distance with its errors, and the rows that a command writes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Distance:
    """One checkpoint's distance from the reference, in nats or units of the outputs squared.

    standard_error: of the choice of examples or pseudo-samples, None for the closed form.  model_error: the relative
    error to expect in all, None where it was not calibrated.  components (K,): the distance over each component's
    inputs, not a number where too few examples speak for it.  exact: the mean over given data, or None.  distance is
    None, and components are empty, where the checkpoint moved before the only layer that the summary holds.
    """

    checkpoint: str
    distance: float | None
    standard_error: float | None
    model_error: float | None
    metric: str
    form: str
    components: tuple[float, ...]
    exact: float | None = None

    @property
    def best(self) -> float:
        """Exact where data were given, else as estimated."""
        if self.exact is not None:
            return self.exact
        assert self.distance is not None  # what cannot be estimated is refused without data
        return self.distance


@dataclass(frozen=True)
class Distances:
    """The distances of several checkpoints, in the order given, over the components of a summary."""

    found: list[Distance]
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def distances(self) -> list[float]:
        """Of each checkpoint: exact where data were given, else as estimated."""
        return [d.best for d in self.found]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per checkpoint."""
        for d in self.found:
            row = {
                "checkpoint": d.checkpoint,
                "distance": d.distance,
                "standard_error": d.standard_error,
                "model_error": d.model_error,
                "metric": d.metric,
                "form": d.form,
            }
            yield row | ({"exact": d.exact} if d.exact is not None else {})

    def component_rows(self) -> Iterator[dict[str, Any]]:
        """One row per checkpoint and component: its weight pi and the distance over its inputs.

        The distance of a checkpoint is the sum of the contributions, weight times distance; both are None for a
        component that too few examples speak for.
        """
        for d in self.found:
            for name, weight, part in zip(self.names, self.weights, d.components, strict=True):
                known = not math.isnan(part)
                yield {
                    "checkpoint": d.checkpoint,
                    "component": name,
                    "weight": weight,
                    "distance": part if known else None,
                    "contribution": weight * part if known else None,
                    "metric": d.metric,
                    "form": d.form,
                }
