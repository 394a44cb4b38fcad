"""Tasks: what a network was trained for.  Each is one module here with one class, found by its file's name.  A task
knows its loss and the derivatives of the loss by the outputs, the distances between two outputs, what its targets are,
and the constant answer that a network is compared with.  `task.Task` is the interface.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Task="task", task_of="task")
