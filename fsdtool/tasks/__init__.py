"""Tasks: what a network was trained for.  Each is one module here with one class, found by its file's name: its loss
and the loss's derivatives at the outputs, the distances between two outputs, what targets are, and the constant answer
that a network is compared with.  `task.Task` says what a task must answer.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Task="task", task_of="task")
