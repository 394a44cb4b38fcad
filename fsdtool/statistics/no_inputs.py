"""No input model: of token ids, categories and masks none is known from which others of the kind could be drawn.

Distances then rest on the examples that the summary keeps (fsdtool.statistics.anchors), and curvature is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.statistics.input_model import InputModel, Stored, StoredArrays
from fsdtool.statistics.merging import Sums


@dataclass(frozen=True)
class NoInputs(InputModel):
    """Nothing is known of the inputs (n,) of `components`."""

    name = "none"

    components: int
    n: int

    def sample(self, k: int, count: int, generator: torch.Generator) -> Tensor:
        """Raises FsdtoolError."""
        raise FsdtoolError(
            "the network takes whole numbers (token ids, categories), of which no examples can be simulated; use "
            '`form="examples"` where the summary has records, or give `data`'
        )

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> NoInputs:
        return self

    def stored(self) -> dict[str, Stored]:
        return {}

    @classmethod
    def read(cls, arrays: StoredArrays, components: int, n: int) -> NoInputs:
        return cls(components, n)


class ExampleCounts(Sums):
    """Counts the examples of each component, in place of the moments of inputs that have none."""

    def __init__(self, components: int, dimensions: int, device: torch.device | None = None):
        self.dimensions = dimensions
        self.count = torch.zeros(components, dtype=torch.float64, device=device)

    def update(self, x: Tensor, component: Tensor) -> None:
        """Add the examples x (batch, n) of the components `component` (batch,)."""
        self.count += torch.bincount(component, minlength=len(self.count)).to(self.count)

    def tensors(self) -> dict[str, Tensor]:
        """Count (K,)."""
        return {"count": self.count}

    def finalize(self) -> NoInputs:
        """Of the components that have examples."""
        return NoInputs(int((self.count > 0).sum()), self.dimensions)
