"""How far two outputs lie apart: the metrics rho of function space distance, which tasks define.

Nothing here imports torch: the command line asks for the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsdtool.errors import FsdtoolError
from fsdtool.tasks.task import Measure, Task, tasks

if TYPE_CHECKING:
    from torch import Tensor

SQUARED_ERROR = "squared_error"  # all tasks have it


def measure(metric: str, f0: Tensor, f1: Tensor, task: Task | None = None) -> Tensor:
    """rho(f0, f1) of each example (batch,) float64 for outputs (batch, O) of a task, by default of classes.

    In float64, since the terms of a small divergence cancel; what rounding makes negative is 0.
    """
    return (metrics() if task is None else task.metrics)[metric](f0.double(), f1.double())


def metrics() -> dict[str, Measure]:
    """The metrics of all tasks by name; of those that several tasks have, that of the first."""
    found: dict[str, Measure] = {}
    for task in tasks().values():
        found |= {name: measure for name, measure in task.metrics.items() if name not in found}
    return found


def default_metric(task: Task) -> str:
    """The first of the metrics that fit a task."""
    return next(iter(task.metrics))


def check_metric(metric: str, task: Task, path: object) -> None:
    """Raise FsdtoolError for a metric that does not exist or does not fit the task of the summary `path`."""
    if metric not in metrics():
        raise FsdtoolError(f"there is no metric '{metric}'; give one of {', '.join(metrics())}")
    if metric not in task.metrics:
        *most, last = (other.name for other in tasks().values() if metric in other.metrics)
        others = f"{', '.join(most)} and {last}" if most else last
        raise FsdtoolError(
            f"the metric '{metric}' is for {others}, and '{path}' is of a {task}; use {' or '.join(task.metrics)}"
        )
