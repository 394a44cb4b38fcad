"""What a gate policy answers: the interface, and the registry that finds a policy by its name.

Under the reference theta0 the summary knows the law of each unit's gate, m = phi'(s0), and of the intercept c, not the
gates themselves.  A policy draws gates that obey the law for a batch of simulated signals s0, and chooses the tape that
replays them under other weights theta1.  A new policy is a module of this package with one subclass of `GatePolicy`, of
the module's name.  Nothing else lists policies.

Nothing here imports torch: the command line asks for the names.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fsdtool.errors import FsdtoolError
from fsdtool.util.discovery import classes_of, module_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fsdtool.network.activations import Activation
    from fsdtool.network.tape import Tape

DEFAULT = "moving"  # of distances over pseudo-samples


class GatePolicy(ABC):
    """One way to draw gates; it has no state, so that one object serves all.

    name: on the command line and in arguments.  tape: the class of what keeps the gates of a run.  has_closed_form:
    whether these are the gates of the stochastic model, of which fsdtool.laftr.closed_form knows the expectation.

    n samples in a batch, U units of a step.  All draws come from the generator that is given.
    """

    name: ClassVar[str]
    tape: ClassVar[type[Tape]]
    has_closed_form: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"policy_of({self.name!r})"

    @abstractmethod
    def draw_pieces(
        self, s: Tensor, probabilities: Tensor, breaks: Sequence[float], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Which piece (n, U) of a piecewise linear activation each entry of the signal s (n, U) is on.

        probabilities: (J - 1, U), of the pieces 1 .. J - 1.  breaks: the J - 1 signals at which the activation goes
        from one piece to the next.  The second result is where these have moved, (U,) each; empty where they do not.
        """

    @abstractmethod
    def draw_slopes(
        self, activation: Activation, s: Tensor, moments: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Slope m and intercept c (n, U) of a smooth activation on the signal s (n, U).

        moments: (5, U), the recorded E[m], E[m^2], E[c], E[m c], E[c^2].
        """


def policy_names() -> list[str]:
    """The names of this package's policies, which are those of its modules: without importing them."""
    return [name for name in module_names(f"{__package__}") if name != Path(__file__).stem]


def _classes() -> dict[str, type[GatePolicy]]:
    return classes_of(f"{__package__}", GatePolicy)  # type: ignore[type-abstract]  # looks for classes below it


@functools.cache
def policies() -> dict[str, GatePolicy]:
    """Every policy by its name."""
    return {name: kind() for name, kind in _classes().items()}


def policy_of(name: str | GatePolicy) -> GatePolicy:
    """The policy of this name; a policy is itself.  Raises FsdtoolError that lists those there are."""
    found = name if isinstance(name, GatePolicy) else policies().get(name)
    if found is None:
        raise FsdtoolError(f"there are no gates '{name}'; give one of {', '.join(policies())}")
    return found
