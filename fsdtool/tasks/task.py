"""The interface of a task, and the registry that finds a task by its name.

Outputs of the network are f (n, O), float32 or float64.  Targets y are class numbers (n,) int64, or numbers (n, O)
float32.  With loss(f, y) the loss of one example:
    g = d loss / d f (n, O)         H = d^2 loss / d f^2 (n, O, O), which depends on f alone
A new task is a module of this package with a subclass of `Task`, of the module's name.  Nothing else lists tasks.

Methods take and give tensors where a network runs, and numpy arrays where targets are read and fits are measured.
They use the tensors' own methods: summaries are read without torch, whose import takes longer than that.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from fsdtool.errors import FsdtoolError
from fsdtool.util.discovery import module_names

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Measure = Callable[["Tensor", "Tensor"], "Tensor"]
REGISTERED: dict[str, type[Task]] = {}


class FitNumbers(Protocol):
    """The numbers of a fit that a task describes in words; fsdtool.statistics.fit defines them."""

    @property
    def mean_loss(self) -> float: ...
    @property
    def baseline_loss(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def baseline_accuracy(self) -> float: ...
    @property
    def r_squared(self) -> tuple[float, ...]: ...
    @property
    def constant(self) -> tuple[float, ...]: ...


class Task(ABC):
    """One task, the same object wherever its name is read; subclasses register themselves.

    name: in files and on the command line.  units: of the loss.  noun: what a target is called, and so the columns of
    judged ones ('given_label').  has_classes: whether a target is the number of one class, each of which is an output;
    else it has a number for each output.  has_labels: whether these numbers are 0 or 1, each output the logit of a
    label of its own.  quadratic: whether the loss is half the squared error, so that the Hessian is the same everywhere
    and only differences of outputs count.  probabilities: functions that make probabilities of outputs; a network that
    ends in one is taken by what goes into it.  metrics: distances rho(f0, f1) (n,) of float64 outputs (n, O) that fit
    the task, its default first; of one name they measure the same of what each task's outputs stand for.
    """

    name: ClassVar[str]
    units: ClassVar[str]
    noun: ClassVar[str] = "target"
    has_classes: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False
    quadratic: ClassVar[bool] = False
    probabilities: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[Mapping[str, Measure]]

    def __init_subclass__(cls) -> None:
        REGISTERED[cls.name] = cls

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"task_of({self.name!r})"

    def __reduce__(self) -> tuple[Callable[[str], Task], tuple[str]]:
        return task_of, (self.name,)

    # The loss and its derivatives

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss (n,) of each example, in `units`; differentiable in the outputs."""

    @abstractmethod
    def loss_gradient(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """The function from outputs (n, O) to the gradient g (n, O) of each example's loss at them."""

    @abstractmethod
    def hessian_product(self, outputs: Tensor, v: Tensor) -> Tensor:
        """H v (..., n, O) of vectors v (..., n, O), H at each of the outputs (n, O)."""

    @abstractmethod
    def hessian_sum(self, outputs: Tensor) -> Tensor:
        """The sum (O, O) of H over the outputs (n, O)."""

    @abstractmethod
    def curvature_draw(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """The function from outputs (n, O) to normal draws v (n, O) with E[v v^T] = H at each."""

    def gradient_draw(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """As `curvature_draw`, but v (n, O) is the gradient for a target drawn from the network's prediction."""
        return self.curvature_draw(generator)

    # Targets

    @abstractmethod
    def prediction(self, outputs: Tensor) -> Tensor:
        """The targets that outputs (n, O) predict: (n,) class numbers, or (n, O) in the units of the targets."""

    @abstractmethod
    def targets(self, stored: np.ndarray, ids: np.ndarray, lenient: bool = False) -> np.ndarray:
        """Stored targets (N, ...) as (N,) int64 or (N, O) float32.

        Raises FsdtoolError that names the first improper one by its id.  lenient: where some are improper, gives all
        as floats instead; each is found again when its example is read.
        """

    @abstractmethod
    def target_of(self, number: float) -> float | None:
        """The target that a number read from text stands for; None if it is no target."""

    def check_targets(
        self,
        targets: Tensor,
        ids: np.ndarray,
        outputs: int,
        source: str = "the data",
        remedy: str = 'they must agree (for class labels give `task="classification"`)',
    ) -> None:
        """Raise FsdtoolError unless the targets of the examples `ids` (n,) fit a network of O `outputs`.

        source, remedy: words for where the targets are from, and for what to do.
        """
        if targets.shape[1] != outputs:
            raise FsdtoolError(
                f"{source} has {targets.shape[1]} target values per example, the model {outputs} outputs; {remedy}"
            )

    # The constant answer and the fit beside it: arrays, in float64

    @abstractmethod
    def constant(self, targets: np.ndarray, outputs: int) -> np.ndarray:
        """The answer (O,) that fits the targets best of all that are the same for every example."""

    @abstractmethod
    def constant_losses(self, constant: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Loss (n,) of the constant answer (O,)."""

    @abstractmethod
    def right(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Which of the outputs (n, O), or (1, O) for all, predict their target: (n,), zeros without classes."""

    @abstractmethod
    def centred(self, outputs: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """Outputs (n, O) less the part that does not change the loss, or less the constant answer (O,)."""

    @abstractmethod
    def refit(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
        """Mean loss of the outputs f (n, O), mean loss of the best u f + b, and the factor u."""

    def reordered(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """Share of right answers of outputs (n, O) if classes are read in the best other order; 0 if there is none."""
        return 0.0

    @abstractmethod
    def describe(self, fit: FitNumbers) -> str:
        """The fit and that of the constant answer, in one line."""


def task_of(name: str | Task) -> Task:
    """The task of this name; a task is itself.  Raises FsdtoolError that lists those there are."""
    found = name if isinstance(name, Task) else tasks().get(name)
    if found is None:
        raise FsdtoolError(f"there is no task '{name}'; give one of {', '.join(tasks())}")
    return found


def tasks() -> dict[str, Task]:
    """Every task by its name."""
    _import_modules()
    return {name: _only(kind) for name, kind in sorted(REGISTERED.items())}


@functools.cache
def _import_modules() -> None:
    for name in task_names():
        import_module(f"{__package__}.{name}")


@functools.cache
def _only(kind: type[Task]) -> Task:
    return kind()


def task_names() -> list[str]:
    """The names of this package's tasks, which are those of its modules: without importing them."""
    return [name for name in module_names(f"{__package__}") if name != Path(__file__).stem]


def stored_numbers(stored: np.ndarray) -> np.ndarray:
    """Stored targets (N, ...) known to be numbers, one for each example as (N,).  Raises FsdtoolError for others."""
    if stored.dtype.kind not in "buif":
        raise FsdtoolError(f"the targets have dtype {stored.dtype}; give numbers, or text for classes")
    return stored.reshape(-1) if stored.ndim > 2 and stored.size == len(stored) else stored  # (N, 1, 1, 1)


def squared_error(f0: Tensor, f1: Tensor) -> Tensor:
    """1/2 |f1 - f0|^2 (n,) of outputs (n, O): a metric of every task."""
    return 0.5 * (f1 - f0).square().sum(1)
